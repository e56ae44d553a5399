"""NIfTI in and out, what is refused at the door, and files that appear whole or not at all."""

import errno
import gzip
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from maisi.errors import InvalidLabelsError, InvalidVolumeError, StorageError
from maisi.space.files import read_image, read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume, check_same_grid
from maisi.storage.atomic import write_atomically

SHAPE = (12, 10, 8)


def torso(shape=SHAPE) -> np.ndarray:
    array = np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)
    array[0, 0, 0], array[-1, -1, -1] = -1000, 40
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine, dtype=array.dtype)
    for name, value in header.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def volume() -> Volume:
    return Volume(torso(), Grid.axis_aligned(SHAPE, (1.5, 1.5, 3.0), (-10.0, 20.0, -30.5)))


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_written_volume_is_int16_with_sform_and_qform_in_scanner_coordinates(tmp_path, suffix):
    write_volume(volume(), tmp_path / f"ct{suffix}")
    image = nib.load(tmp_path / f"ct{suffix}")
    assert image.get_data_dtype() == np.int16
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), volume().grid.affine, atol=1e-5)
    np.testing.assert_allclose(image.get_sform(), volume().grid.affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), torso())


def test_hounsfield_units_are_rounded_to_the_nearest_integer(tmp_path):
    array = torso().astype(np.float32)
    array[1, 1, 1], array[1, 1, 2] = -999.6, 10.4
    write_volume(Volume(array, volume().grid), tmp_path / "ct.nii.gz")
    found = read_volume(tmp_path / "ct.nii.gz").array
    assert (found[1, 1, 1], found[1, 1, 2]) == (-1000, 10)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_written_label_map_keeps_its_type(tmp_path, dtype):
    ids = (np.arange(960).reshape(SHAPE) % np.iinfo(dtype).max).astype(dtype)
    write_labels(LabelMap(ids, volume().grid), tmp_path / "labels.nii.gz")
    assert nib.load(tmp_path / "labels.nii.gz").get_data_dtype() == dtype


def test_the_same_volume_gives_the_same_bytes_and_plain_gzip_can_read_them(tmp_path):
    write_volume(volume(), tmp_path / "a.nii.gz")
    write_volume(volume(), tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())) == 352 + 2 * volume().grid.num_voxels


@pytest.mark.parametrize("value", [np.nan, np.inf, 40000])
def test_values_that_int16_cannot_hold_are_refused_and_nothing_is_written(tmp_path, value):
    array = torso().astype(np.float32)
    array[2, 2, 2] = value
    with pytest.raises(InvalidVolumeError, match="-32768 to 32767"):
        write_volume(Volume(array, volume().grid), tmp_path / "ct.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_name_of_no_format_is_refused_for_writing(tmp_path):
    with pytest.raises(InvalidVolumeError, match=r"\.nii or \.nii\.gz"):
        write_volume(volume(), tmp_path / "ct.img")


# --- reading -------------------------------------------------------------------------------------------------------


def test_the_scale_factor_of_the_header_is_applied(tmp_path):
    stored = (torso() + 1024).astype(np.uint16)
    path = save(tmp_path / "ct.nii", stored)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    np.testing.assert_allclose(read_volume(path).array, stored * 0.5 - 1024)


def test_a_trailing_axis_of_one_is_dropped(tmp_path):
    path = save(tmp_path / "ct.nii.gz", torso()[..., None])
    assert read_volume(path).array.shape == SHAPE


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_1_and_2_of_either_byte_order_are_read(tmp_path, endian, version):
    image = version(torso(), np.diag([2.0, 2.0, 3.0, 1.0]), version.header_class(endianness=endian))
    image.to_filename(tmp_path / "ct.nii.gz")
    found = read_volume(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(found.array, torso())
    np.testing.assert_allclose(found.grid.spacing, (2, 2, 3))


def test_bytes_that_the_header_does_not_speak_of_are_warned_of(tmp_path):
    path = save(tmp_path / "ct.nii", torso())
    path.write_bytes(path.read_bytes() + bytes(100))
    _, findings = read_image(path, ReadOptions())
    assert any(f.is_warning and "100 bytes after the last voxel" in f.found for f in findings)
    path = save(tmp_path / "gap.nii", torso())
    content = path.read_bytes()
    path.write_bytes(content[:108] + np.array(452, "<f4").tobytes() + content[112:352] + bytes(100) + content[352:])
    volume, findings = read_image(path, ReadOptions())
    np.testing.assert_array_equal(volume.array, torso())
    assert any(f.is_warning and "100 bytes between header and voxels" in f.found for f in findings)


def test_units_of_metres_and_microns_become_millimetres(tmp_path):
    for unit, code, factor in (("metre", 1, 0.001), ("micron", 3, 1000.0)):
        path = save(
            tmp_path / f"{unit}.nii", torso(), np.diag([2 * factor, 2 * factor, 3 * factor, 1]), xyzt_units=code
        )
        np.testing.assert_allclose(read_volume(path).grid.spacing, (2, 2, 3), rtol=1e-5)


def test_a_file_whose_gzip_has_several_members_is_read_whole(tmp_path):
    content = save(tmp_path / "ct.nii", torso()).read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(igzip.compress(content[:500]) + igzip.compress(content[500:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii.gz").array, torso())


def oblique(degrees: float, spacing=(2.0, 2.0, 3.0)) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(spacing)
    affine[:3, 3] = (-20, 5, 60)
    return affine


@pytest.mark.parametrize("degrees", [12.0, -40.0, 110.0])
def test_an_oblique_image_is_interpolated_onto_the_ras_grid_that_covers_it(tmp_path, degrees):
    source = Grid((24, 26, 20), oblique(degrees))
    slope = np.array([2.0, -3.0, 4.0])  # HU per mm: linear interpolation keeps a linear function
    array = (source.world(np.stack(np.indices(source.shape), -1)) @ slope - 300).astype(np.float32)
    path = save(tmp_path / "ct.nii.gz", array, source.affine)
    found = read_volume(path)
    assert found.grid.is_ras
    low, high = found.grid.index(source.corners()).min(0), found.grid.index(source.corners()).max(0)
    assert (low >= 0).all()
    assert (high <= np.array(found.grid.shape) - 1).all()
    world = found.grid.world(np.stack(np.indices(found.grid.shape), -1))
    index = source.index(world)
    inside = ((index > 1) & (index < np.array(source.shape) - 2)).all(-1)
    beyond = ((index < -0.6) | (index > np.array(source.shape) - 0.4)).any(-1)
    assert inside.sum() > 1000
    np.testing.assert_allclose(found.array[inside], (world @ slope - 300)[inside], atol=0.05)
    assert (found.array[beyond] == -1024).all()


def test_an_oblique_label_map_keeps_its_ids_and_lands_on_the_grid_of_its_volume(tmp_path):
    ids = np.zeros((24, 26, 20), np.uint8)
    ids[4:20, 5:21, 4:16] = 17
    labels = read_labels(save(tmp_path / "labels.nii.gz", ids, oblique(20)))
    check_same_grid(labels, read_volume(save(tmp_path / "ct.nii.gz", torso(ids.shape), oblique(20))))
    assert set(np.unique(labels.array)) == {0, 17}
    np.testing.assert_allclose((labels.array == 17).sum(), (ids == 17).sum(), rtol=0.03)


def test_axes_that_lean_by_a_rounding_error_are_straightened_without_interpolation(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 1] = affine[2, 0] = 1e-4
    found = read_volume(save(tmp_path / "ct.nii", torso(), affine))
    assert found.grid.is_ras
    np.testing.assert_array_equal(found.array, torso())
    assert Grid(SHAPE, affine).is_close(found.grid)


def test_a_file_without_orientation_is_read_with_a_warning(tmp_path, caplog):
    path = save(tmp_path / "ct.nii", torso(), sform_code=0, qform_code=0)
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # both codes
    path.write_bytes(content)
    with caplog.at_level("WARNING"):
        assert read_volume(path).grid.shape == SHAPE
    assert "neither sform nor qform" in caplog.text


def test_an_mr_is_read_without_a_check_for_hounsfield_units(tmp_path):
    path = save(tmp_path / "mr.nii", np.abs(torso()))
    assert read_volume(path, modality="mr").modality == "mr"


def test_real_cts_and_their_labels_are_read_on_one_grid(shared_data, shared_cases):
    for case in [c for c in shared_cases if "labels" in c][:3]:
        found = read_volume(shared_data / case["image"])
        assert list(found.grid.shape) == case["shape"]
        np.testing.assert_allclose(found.grid.spacing, case["spacing_mm"], atol=2e-3)
        check_same_grid(read_labels(shared_data / case["labels"]), found)


# --- refusals ------------------------------------------------------------------------------------------------------


def _rgb(path: Path) -> Path:
    return save(path, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


def _nan(path: Path) -> Path:
    array = torso().astype(np.float32)
    array[3, 3, 3] = np.nan
    return save(path, array)


def _infinite(path: Path) -> Path:
    array = torso().astype(np.float64)
    array[3, 3, 3] = 1e300  # beyond float32
    return save(path, array)


def _cut(path: Path, keep: float) -> Path:
    content = save(path, torso()).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def _flipped(path: Path) -> Path:
    content = bytearray(save(path, torso()).read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    return path


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _header(path: Path, at: int, value: bytes) -> Path:
    content = bytearray(save(path, torso()).read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


BAD_VOLUMES = {
    "rgb": (_rgb, "ct.nii.gz", r"colour \(RGB\)"),
    "complex": (lambda p: save(p, torso().astype(np.complex64)), "ct.nii", "complex voxels"),
    "2-D": (lambda p: save(p, torso()[:, :, 0]), "ct.nii", "2-D image of 12x10"),
    "one slice": (lambda p: save(p, torso()[:, :, :1]), "ct.nii", "12x10x1"),
    "4-D": (
        lambda p: save(p, np.stack([torso()] * 3, -1)),
        "ct.nii.gz",
        r"4-D image of 12x10x8x3, 3 volumes in one; accepted: .*img\.slicer\[\.\.\., 0\]",
    ),
    "5-D": (lambda p: save(p, np.stack([torso()] * 3, -1)[..., None, :]), "ct.nii", "5-D image of 12x10x8x1x3"),
    "zeros": (lambda p: save(p, np.zeros(SHAPE, np.int16)), "ct.nii.gz", "the same value 0 in every voxel"),
    "NaN": (_nan, "ct.nii", "1 voxels that are NaN"),
    "infinite": (_infinite, "ct.nii", "NaN or infinite"),
    "not HU": (
        lambda p: save(p, np.abs(torso())),
        "ct.nii",
        "not HU of a CT; they look like an MR.*accepted: CT in HU; --modality mr",
    ),
    "unit range": (
        lambda p: save(p, np.linspace(0, 1, 960, dtype="f4").reshape(SHAPE)),
        "ct.nii",
        "values from 0 to 1",
    ),
    "too bright": (
        lambda p: save(p, torso().astype("i4") * 30),
        "ct.nii",
        "of the voxels lie below -1200 or above 3100",
    ),
    "only air": (lambda p: save(p, (torso() % 50 - 1020).astype("i2")), "ct.nii", "air or lung alone.*some tissue"),
    "truncated gzip": (lambda p: _cut(p, 0.7), "ct.nii.gz", "truncated or corrupt gzip"),
    "last byte gone": (lambda p: _cut(p, 0.9999), "ct.nii.gz", "truncated or corrupt gzip"),
    "corrupt gzip": (_flipped, "ct.nii.gz", "truncated or corrupt gzip"),
    "plain NIfTI": (
        lambda p: _bytes(p, save(p.with_name("plain.nii"), torso()).read_bytes()),
        "ct.nii.gz",
        r"a plain NIfTI that is named \.nii\.gz; accepted: a gzip file, or the name ct\.nii$",
    ),
    "gzip": (
        lambda p: _bytes(p, gzip.compress(save(p.with_name("plain.nii"), torso()).read_bytes())),
        "ct.nii",
        r"not NIfTI but a gzip file; accepted: .*name it \.nii\.gz",
    ),
    "packed twice": (
        lambda p: _bytes(p, gzip.compress(save(p.with_name("once.nii.gz"), torso()).read_bytes())),
        "ct.nii.gz",
        "not NIfTI but a gzip file",
    ),
    "pair in one": (lambda p: _header(p, 344, b"ni1\0"), "ct.nii", r"half of an \.hdr/\.img pair"),
    "Analyze": (lambda p: _header(p, 344, b"\0\0\0\0"), "ct.nii", r"an Analyze 7\.5 header"),
    "DICOM": (lambda p: _bytes(p, bytes(128) + b"DICM" + bytes(900)), "ct.nii", "not NIfTI but a DICOM file"),
    "bare DICOM": (lambda p: _bytes(p, b"\x08\0\x05\0" + bytes(900)), "ct.nii", "DICOM file without preamble"),
    "NRRD": (lambda p: _bytes(p, b"NRRD0004\n"), "ct.nii", "an NRRD file; accepted: .*name it .nrrd"),
    "MetaImage": (lambda p: _bytes(p, b"ObjectType = Image\n"), "ct.nii.gz", "a MetaImage"),
    "NumPy": (lambda p: _bytes(p, b"\x93NUMPY\x01\0"), "ct.nii", "a NumPy array, which has no place"),
    "MGH": (lambda p: _bytes(p, gzip.compress(b"\0\0\0\x01\0\0\0\x20" + bytes(400))), "ct.nii.gz", "FreeSurfer"),
    "LFS": (lambda p: _bytes(p, b"version https://git-lfs.github.com/spec/v1\n"), "ct.nii.gz", "git lfs pull"),
    "web page": (lambda p: _bytes(p, b"<!doctype html>"), "ct.nii.gz", "a web page"),
    "named img": (lambda p: _bytes(p, b"?"), "ct.img", r"'\.img', half of an \.hdr/\.img pair"),
    "named hdr": (lambda p: _bytes(p, b"?"), "ct.hdr", r"'\.hdr', half of an \.hdr/\.img pair"),
    "named nrrd": (lambda p: _bytes(p, b"?"), "ct.nrrd", "a file that is not NRRD"),
    "named mha": (lambda p: _bytes(p, b"?"), "ct.mha", "a header without ElementDataFile"),
    "named mgz": (lambda p: _bytes(p, b"?"), "ct.mgz", "mri_convert"),
    "named npy": (lambda p: _bytes(p, b"?"), "ct.npy", "no place in the world"),
    "not gzip": (lambda p: _bytes(p, b"CT of a patient" * 99), "ct.nii.gz", "truncated or corrupt gzip"),
    "empty file": (lambda p: _bytes(p, b""), "ct.nii.gz", "not NIfTI"),
    "truncated": (lambda p: _cut(p, 0.7), "ct.nii", "the file is truncated"),
    "not NIfTI": (lambda p: _bytes(p, b"CT of a patient" * 99), "ct.nii", "not NIfTI"),
    "unknown ending": (lambda p: _bytes(p, b"?"), "ct.xyz", r"the name ending '\.xyz'"),
    "no ending": (lambda p: _bytes(p, b"?"), "ct", r"the name ending '\(none\)'"),
    "smaller header": (
        lambda p: _header(p, 42, np.array([11], "<i2").tobytes()),
        "ct.nii",
        "160 bytes after the last voxel of 11x10x8: the header tells less than is there",
    ),
    "voxels in the header": (lambda p: _header(p, 108, bytes(4)), "ct.nii", "voxels from byte 0 on"),
    "far away": (
        lambda p: _header(p, 292, np.array(1e30, "<f4").tobytes()),
        "ct.nii",
        r"a first voxel at \(1e\+30, 0, 0\) mm",
    ),
    "unknown type": (lambda p: _header(p, 70, b"\xff\x7f"), "ct.nii", "not a volume"),
    "singular": (lambda p: _header(p, 312, bytes(16)), "ct.nii", "singular"),
    "NaN affine": (lambda p: _header(p, 280, np.array(np.nan, "<f4").tobytes()), "ct.nii", "not a finite map"),
    "spacing": (
        lambda p: save(p, torso(), np.diag([2, 2, 300.0, 1])),
        "ct.nii",
        "2 x 2 x 300 mm; accepted: 0.05 to 25 mm",
    ),
}


@pytest.mark.parametrize("name", BAD_VOLUMES)
def test_what_is_not_a_ct_is_refused_with_what_was_found_and_what_is_accepted(tmp_path, name):
    make, file_name, words = BAD_VOLUMES[name]
    path = make(tmp_path / file_name)
    with pytest.raises(InvalidVolumeError, match=words) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "accepted: " in str(error.value)


def test_a_missing_file_an_empty_folder_and_a_folder_read_as_mr_are_refused(tmp_path):
    with pytest.raises(InvalidVolumeError, match="no such file"):
        read_volume(tmp_path / "absent.nii.gz")
    with pytest.raises(InvalidVolumeError, match="an empty folder"):
        read_volume(tmp_path)
    with pytest.raises(InvalidVolumeError, match=r"MR as \.nii"):
        read_volume(tmp_path, modality="mr")
    with pytest.raises(InvalidVolumeError, match="together with a DICOM folder"):
        read_volume(save(tmp_path / "ct.nii", torso()), series="1.2.3")


BAD_LABELS = {
    "fractions": (lambda p: save(p, np.full(SHAPE, 2.5, "f4")), "values that are not whole, such as 2.5"),
    "negative": (lambda p: save(p, np.full(SHAPE, -1, "i2")), "no ids, such as -1"),
    "too large": (lambda p: save(p, np.full(SHAPE, 65536, "i4")), "no ids, such as 65536"),
    "NaN": (lambda p: save(p, np.full(SHAPE, np.nan, "f4")), "no ids, such as nan"),
    "rgb": (_rgb, r"colours \(RGB\)"),
    "2-D": (lambda p: save(p, np.ones((12, 10), "u1")), "2-D array of 12x10"),
    "4-D": (lambda p: save(p, np.ones((12, 10, 8, 2), "u1")), "a fourth axis of 2"),
    "corrupt": (_flipped, "truncated or corrupt gzip"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_what_is_not_a_label_map_is_refused_with_what_was_found(tmp_path, name):
    make, words = BAD_LABELS[name]
    path = make(tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match=words) as error:
        read_labels(path)
    assert str(path) in str(error.value)


def test_whole_numbers_stored_as_floats_or_wide_integers_are_ids(tmp_path):
    ids = (np.arange(960).reshape(SHAPE) % 133).astype(np.uint8)
    for dtype in ("f4", "f8", "i2", "i4"):
        found = read_labels(save(tmp_path / f"{dtype}.nii.gz", ids.astype(dtype)))
        assert found.array.dtype == np.uint8
        np.testing.assert_array_equal(found.array, ids)
    assert read_labels(save(tmp_path / "wide.nii.gz", ids.astype("u2") + 300)).array.dtype == np.uint16


# --- whole or not at all -------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.write_text("old")

    def write_half() -> None:
        with write_atomically(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".")
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["ct.nii.gz"]


def test_a_kill_leaves_no_half_file_and_the_next_write_removes_what_was_left(tmp_path):
    script = """
        import sys, time
        from maisi.storage.atomic import write_atomically
        with write_atomically(sys.argv[1]) as temporary:
            temporary.write_bytes(b"half")
            print("ready", flush=True)
            time.sleep(60)
    """
    path = tmp_path / "ct.nii.gz"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        with write_atomically(tmp_path / "other.txt") as temporary:
            temporary.write_text("whole")
        assert len(list(tmp_path.glob(".maisi-*"))) == 1  # its writer lives
        writer.send_signal(signal.SIGKILL)
    assert not path.exists()
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct.nii.gz", "other.txt"]


def test_what_another_machine_is_writing_is_left_alone(tmp_path, dead_mark):
    other = tmp_path / f".maisi-another_host~{dead_mark.partition('~')[2]}.nii.gz"
    other.write_text("half")
    write_volume(volume(), tmp_path / "ct.nii.gz")
    assert other.exists()


def test_a_disk_known_to_be_too_small_is_told_before_anything_is_written(tmp_path):
    with (
        pytest.raises(StorageError, match=rf"{2**62} bytes needed, \d+ free"),
        write_atomically(tmp_path / "ct.nii.gz", num_bytes=2**62),
    ):
        pytest.fail("the block must not run")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_without_a_need_that_nobody_knows(tmp_path):
    with (
        pytest.raises(StorageError, match=rf"run\.yaml: {os.strerror(errno.ENOSPC)}; the \d+ bytes free are too few$"),
        write_atomically(tmp_path / "run.yaml"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _said_by(write, messages) -> None:
    try:
        write()
    except StorageError as error:
        messages.put(str(error))
    else:
        messages.put("written")


def _write_with_little_room(path: Path, messages) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    _said_by(lambda: write_volume(volume(), path), messages)


def _write_as_nobody(path: Path, messages) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    _said_by(lambda: write_volume(volume(), path), messages)


def said_in_another_process(write, path: Path) -> str:
    """What the `StorageError` says that `write` raises in a process whose rights it may reduce."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    child = context.Process(target=write, args=(path, messages))
    child.start()
    said = messages.get(timeout=60)
    child.join()
    return said


def test_a_write_that_runs_out_of_room_leaves_nothing_and_tells_needed_and_free_bytes(tmp_path):
    said = said_in_another_process(_write_with_little_room, tmp_path / "ct.nii")
    assert re.search(rf"{352 + 2 * 960} bytes needed, \d+ free", said)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_locked_or_missing_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="there is no folder"):
        write_volume(volume(), tmp_path / "absent" / "ct.nii.gz")
    tmp_path.chmod(0o555)
    said = said_in_another_process(_write_as_nobody, tmp_path / "ct.nii.gz")
    tmp_path.chmod(0o755)
    assert "Permission denied; accepted: a folder that can be written to" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("slope", "offset", "is_told"), [(0, 0, False), (0, -1024, True), (np.nan, np.nan, False), (np.nan, 7, True)]
)
def test_an_offset_without_a_factor_is_passed_over_with_a_warning(tmp_path, slope, offset, is_told):
    content = bytearray(nib.Nifti1Image(torso(), np.diag([5, 5, 5, 1])).to_bytes())
    content[112:120] = np.array([slope, offset], "<f4").tobytes()
    (tmp_path / "ct.nii").write_bytes(bytes(content))
    volume, findings = read_image(tmp_path / "ct.nii", ReadOptions())
    np.testing.assert_array_equal(volume.array, torso())
    assert any("a scale factor of" in f.found and f.is_warning for f in findings) == is_told
