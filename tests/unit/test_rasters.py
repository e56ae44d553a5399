"""NRRD, MetaImage and `.seg.nrrd`: as written, as SimpleITK reads them, and what is refused of them."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_clinical import GRID, made_labels, made_provenance, made_segments, made_volume

from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidRequestError, InvalidVolumeError
from maisi.space.files import write_labels, write_volume
from maisi.space.label_files import read_stored_labels
from maisi.space.origin import read_provenance
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

VOLUMES = ("ct.nrrd", "ct.mha", "ct.nii.gz")
LABELS = ("l.nrrd", "l.seg.nrrd", "l.mha", "l.nii")


@pytest.mark.parametrize("name", VOLUMES)
def test_a_volume_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    write_volume(made_volume(), tmp_path / name, made_provenance())
    again, _ = open_volume(tmp_path / name)
    assert np.array_equal(again.array, made_volume().array)
    assert again.grid.is_close(GRID, 1e-6)
    assert read_provenance(tmp_path / name) == made_provenance()


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    write_labels(made_labels(), tmp_path / name, made_provenance(), made_segments())
    again, _ = open_labels(tmp_path / name)
    assert np.array_equal(again.array, made_labels().array)
    assert again.grid.is_close(GRID, 1e-6)
    assert read_provenance(tmp_path / name) == made_provenance()


@pytest.mark.parametrize("name", [*VOLUMES, *LABELS])
def test_equal_contents_give_equal_files(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        if name in VOLUMES:
            write_volume(made_volume(), tmp_path / folder / name, made_provenance())
        else:
            write_labels(made_labels(), tmp_path / folder / name, made_provenance(), made_segments())
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["l.nrrd", "l.mha", "l.nii.gz"])
def test_simpleitk_reads_values_place_and_origin(name: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    write_volume(made_volume(), tmp_path / name, made_provenance())
    image = sitk.ReadImage(str(tmp_path / name))
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(array, made_volume().array.astype(np.int16))
    for index in ((0, 0, 0), (17, 3, 9)):
        world = GRID.world(np.array(index)) * (-1, -1, 1)
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), world, atol=1e-4)
    if not name.endswith(".nii.gz"):
        assert image.GetMetaData("maisi_provenance") == made_provenance().text


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
@pytest.mark.parametrize("is_compressed", [True, False])
def test_what_simpleitk_writes_is_read_along_ras(name: str, is_compressed: bool, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    image = sitk.GetImageFromArray(made_volume().array.transpose(2, 1, 0).astype(np.int16))
    image.SetSpacing(GRID.spacing)
    image.SetOrigin((GRID.origin[0] * -1, GRID.origin[1] * -1, GRID.origin[2]))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    flipped = sitk.Flip(image, (True, False, True))
    sitk.WriteImage(flipped, str(tmp_path / name), useCompression=is_compressed)
    again, _ = open_volume(tmp_path / name)
    assert np.array_equal(again.array, made_volume().array)
    assert again.grid.is_close(GRID, 1e-4)


def test_a_segmentation_names_colours_and_codes_its_segments(tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    write_labels(made_labels(), tmp_path / "l.seg.nrrd", None, made_segments())
    data, header = nrrd.read(str(tmp_path / "l.seg.nrrd"))
    assert np.array_equal(data, made_labels().array)
    named = {header[f"Segment{n}_Name"]: n for n in range(len(made_segments()))}
    assert set(named) == {"liver", "hepatic tumor", "left kidney", "body"}
    kidney = named["left kidney"]
    assert header[f"Segment{kidney}_LabelValue"] == "14"
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in header[f"Segment{kidney}_Tags"]
    assert header[f"Segment{named['liver']}_Color"].split()[0] == f"{150 / 255:.6g}"
    assert "SCT^108369006^Neoplasm~^^~" in header[f"Segment{named['hepatic tumor']}_Tags"]
    assert "SCT^10200004^Liver~^^" in header[f"Segment{named['hepatic tumor']}_Tags"]


def test_segments_in_layers_may_overlap_and_the_smaller_one_is_kept(tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    layers = np.zeros((2, 6, 5, 4), np.uint8)
    layers[0, 1:5, 1:4], layers[1, 2, 2, 1:3] = 1, 1
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.array([[np.nan] * 3, [-2, 0, 0], [0, -2, 0], [0, 0, 2]]),
        "space origin": [0, 0, 0],
        **{"Segment0_ID": "a", "Segment0_Name": "liver", "Segment0_LabelValue": "1", "Segment0_Layer": "0"},
        **{"Segment1_ID": "b", "Segment1_Name": "hepatic tumor", "Segment1_LabelValue": "1", "Segment1_Layer": "1"},
    }
    nrrd.write(str(tmp_path / "s.seg.nrrd"), layers, header)
    labels, report = open_labels(tmp_path / "s.seg.nrrd")
    assert np.array_equal(labels.array == 26, layers[1] == 1)
    assert np.array_equal(labels.array == 1, (layers[0] == 1) & (layers[1] == 0))
    assert any("several structures claim" in finding.found for finding in report.findings)


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        write_labels(LabelMap(made_labels().array, GRID), path, None, made_segments())
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def swapped(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (edited("l.nrrd", lambda content: content[:-30]), r"truncated|decompressed"),
        (edited("l.nrrd", lambda content: b""), "an empty file"),
        (edited("l.nrrd", lambda content: b"NIFTI" + content), "not NRRD"),
        (edited("l.nrrd", swapped(b"gzip", b"bzip2")), "encoded as bzip2; accepted: raw or gzip"),
        (edited("l.nrrd", swapped(b"left-posterior-superior", b"scanner-xyz")), "the space 'scanner-xyz'"),
        (edited("l.nrrd", swapped(b"space directions", b"spacings")), "no space directions"),
        (edited("l.nrrd", swapped(b"sizes: 18", b"sizes: 17")), "more voxels than"),
        (edited("l.nrrd", swapped(b"sizes: 18 15 12", b"sizes: 99999999 15 12")), "truncated"),
        (edited("l.nrrd", swapped(b"sizes: 18 15 12", b"sizes: 9999999999 15 12")), "bytes of voxels"),
        (edited("l.nrrd", swapped(b"type: uint8", b"type: block")), "voxels of the type block"),
        (edited("l.mha", lambda content: content[:-30]), r"truncated|decompressed"),
        (edited("l.mha", swapped(b"DimSize = 18", b"DimSize = x")), "the DimSize 'x 15 12'"),
        (edited("l.mha", swapped(b"NDims = 3", b"NDims = 2")), "a 2-D image"),
        (edited("l.mha", swapped(b"LOCAL", b"../../etc/passwd")), "accepted: LOCAL, or one data file beside"),
        (edited("l.mha", swapped(b"MET_UCHAR", b"MET_STRING")), "voxels of the type MET_STRING"),
        (edited("l.mha", swapped(b"Offset = ", b"Where = ")), "tells no place"),
        (edited("l.mha", swapped(b"-1 0 0 0 -1 0", b"1 0 0 1 0 0")), "an impossible geometry"),
        (edited("l.seg.nrrd", swapped(b"Segment0_LabelValue:=1", b"Segment0_LabelValue:=x")), "a Name, a LabelValue"),
        (edited("l.seg.nrrd", swapped(b"Segment0_Name:=liver", b"Segment0_Name:=livre")), "vocabulary does not know"),
        (edited("l.seg.nrrd", swapped(b"LabelValue:=14", b"LabelValue:=15")), "ids without a name"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(InvalidRequestError, match=message) as raised:
        open_labels(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_no_more_is_unpacked_than_the_header_tells(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nrrd"
    write_labels(made_labels(), path)
    head = path.read_bytes().split(b"\n\n", 1)[0]
    path.write_bytes(head + b"\n\n" + gzip.compress(bytes(50_000_000)))
    with pytest.raises(InvalidRequestError, match="more voxels than the 3240 bytes"):
        read_stored_labels(path)


def test_a_header_of_its_own_names_a_file_beside_it(tmp_path: Path) -> None:
    write_labels(made_labels(), tmp_path / "l.nrrd")
    head, _, voxels = (tmp_path / "l.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "l.raw.gz").write_bytes(voxels)
    (tmp_path / "l.nhdr").write_bytes(head + b"\ndata file: l.raw.gz\n")
    assert np.array_equal(open_labels(tmp_path / "l.nhdr")[0].array, made_labels().array)


def test_an_id_without_a_segment_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="ids without a segment to write"):
        write_labels(made_labels(), tmp_path / "l.seg.nrrd", None, made_segments()[:2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["adc.nrrd", "adc.mha", "adc.nii.gz"])
def test_values_of_an_mr_that_whole_numbers_would_lose_are_kept(name: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).uniform(0, 0.003, GRID.shape).astype(np.float32)
    write_volume(Volume(array, GRID, "mr"), tmp_path / name)
    again, _ = open_volume(tmp_path / name, ReadOptions(modality="mr"))
    assert np.array_equal(again.array, array)
    whole = np.round(array * 1e6)
    write_volume(Volume(whole, GRID, "mr"), tmp_path / f"whole_{name}")
    again, _ = open_volume(tmp_path / f"whole_{name}", ReadOptions(modality="mr"))
    assert np.array_equal(again.array, whole)
    assert (tmp_path / f"whole_{name}").stat().st_size < (tmp_path / name).stat().st_size


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ct.nrrd", b'space units: "mm" "mm" "mm"', b'space units: "cm" "cm" "cm"'),
        ("ct.mha", b"CenterOfRotation", b"DistanceUnits = cm\nCenterOfRotation"),
    ],
)
def test_lengths_in_another_unit_are_refused(name: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    write_volume(made_volume(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new))
    with pytest.raises(InvalidVolumeError, match="lengths in 'cm'; accepted: mm"):
        open_volume(tmp_path / name)


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(InvalidVolumeError, match="not finite"):
        write_volume(Volume(array, GRID, "mr"), tmp_path / "mr.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_header_may_name_a_data_file_with_a_space_and_hold_any_character(tmp_path: Path) -> None:
    write_volume(made_volume(), tmp_path / "ct.nrrd")
    head, _, voxels = (tmp_path / "ct.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "my scan.raw.gz").write_bytes(voxels)
    told = "\nnote:=one\u2028line\ndata file: my scan.raw.gz\n".encode()
    (tmp_path / "my scan.nhdr").write_bytes(head + told)
    again, _ = open_volume(tmp_path / "my scan.nhdr")
    assert np.array_equal(again.array, made_volume().array)
