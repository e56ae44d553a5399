"""Where a NIfTI file says that it lies: two forms, a pixdim and a unit, and what is made of them when they disagree."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scans import AFFINE, SHAPE, save_scan, trunk, world_of

from maisi.errors import InvalidVolumeError
from maisi.space.files import read_image
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.reading import Finding, ReadOptions

MIRROR = np.diag([-1.0, 1, 1, 1])
OFFSETS = {"qform_code": 252, "sform_code": 254, "quatern_b": 256, "qoffset_x": 268, "srow_x": 280, "pixdim": 76}


def two_forms(
    path: Path, sform: np.ndarray | None, qform: np.ndarray | None, codes: tuple[int, int] = (1, 1), **header: object
) -> Path:
    """The trunk with an sform and a qform of their own, and their codes."""
    image = nib.Nifti1Image(trunk(), AFFINE)
    image.set_sform(sform, code=codes[0])
    image.set_qform(AFFINE if qform is None else qform, code=codes[1] if qform is not None else 0)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    path.write_bytes(image.to_bytes())
    return path


def put(path: Path, at: str, values: object, dtype: str) -> Path:
    """The file with a field of its header overwritten."""
    content = bytearray(path.read_bytes())
    raw = np.asarray(values, dtype).tobytes()
    content[OFFSETS[at] : OFFSETS[at] + len(raw)] = raw
    path.write_bytes(content)
    return path


def read(path: Path, **options: object) -> tuple[Grid, list[Finding]]:
    volume, findings = read_image(path, ReadOptions(**options))
    return volume.grid, findings


def changed(**shift: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] += shift.get("z", 0)
    affine[2, 2] *= shift.get("scale", 1)
    return affine


DISAGREEING = {
    "mirrored": (MIRROR @ AFFINE, AFFINE, "axes LAS.*axes RAS"),
    "mirrored in place": (AFFINE, AFFINE @ np.diag([1, -1.0, 1, 1]), "axes RAS.*axes RPS"),
    "shifted by a plane": (changed(z=10), AFFINE, r"-85\) mm.*-95\) mm"),
    "other planes": (changed(scale=1.3), AFFINE, "10 x 10 x 13 mm.*10 x 10 x 10 mm"),
    "transposed": (AFFINE[:, [1, 0, 2, 3]], AFFINE, "axes ARS.*axes RAS"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_an_sform_and_a_qform_that_disagree_are_refused_with_both_and_the_option_to_choose(tmp_path, name):
    sform, qform, words = DISAGREEING[name]
    path = two_forms(tmp_path / "ct.nii", sform, qform)
    with pytest.raises(InvalidVolumeError, match=f"sform and qform that disagree by up to .*{words}") as error:
        read(path)
    assert "--affine sform or --affine qform" in str(error.value)


@pytest.mark.parametrize("name", DISAGREEING)
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_the_form_asked_for_counts_and_is_recorded(tmp_path, name, form):
    sform, qform, _ = DISAGREEING[name]
    grid, findings = read(two_forms(tmp_path / "ct.nii", sform, qform), affine=form)
    wanted = Grid(SHAPE, sform if form == "sform" else qform)
    np.testing.assert_allclose(np.sort(grid.corners(), 0), np.sort(wanted.corners(), 0), atol=1e-3)
    assert any(f.topic == "place" and f"the {form} asked for" in f.found for f in findings)


def test_the_place_of_a_label_map_is_as_little_guessed(tmp_path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE)
    image.set_sform(MIRROR @ AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    image.to_filename(tmp_path / "labels.nii")
    with pytest.raises(ValueError, match=r"is not a label map.*sform and qform that disagree"):
        read_labels(tmp_path / "labels.nii")


axes = st.sampled_from(list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))))


@settings(deadline=None, max_examples=60)
@given(
    axes=axes,
    angles=st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
)
def test_forms_that_are_one_to_within_rounding_are_never_called_two(tmp_path_factory, axes, angles, spacing, origin):
    order, signs = axes
    rotation = np.eye(3)[:, list(order)] * signs
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [k for k in range(3) if k != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * spacing, origin
    array = np.random.default_rng(0).integers(-1000, 1500, (16, 12, 8)).astype(np.int16)
    _, findings = read_image(save_scan(tmp_path_factory.mktemp("one") / "ct.nii", array, affine), ReadOptions())
    assert [f for f in findings if f.topic == "place"] == []


def test_a_pixdim_rounded_to_three_digits_is_no_other_place(tmp_path):
    affine = np.diag([0.9765625, 0.9765625, 5.0, 1])
    path = save_scan(tmp_path / "ct.nii", np.tile(trunk(), (4, 4, 1)), affine)
    _, findings = read(put(path, "pixdim", [1, 0.977, 0.977, 5.0], "<f4"))
    assert findings == []


def test_an_sform_of_other_spacing_than_pixdim_is_refused_with_both(tmp_path):
    path = put(two_forms(tmp_path / "ct.nii", AFFINE, None), "pixdim", [1, 10, 10, 3.7], "<f4")
    with pytest.raises(InvalidVolumeError, match=r"spacing of 10 x 10 x 10 mm, but a pixdim of 10 x 10 x 3\.7 mm"):
        read(path)
    grid, _ = read(path, affine="sform")
    np.testing.assert_allclose(grid.spacing, 10)


@pytest.mark.parametrize("pixdim", [[1, 0, 0, 0], [1, -10, 10, 10], [1, np.nan, 10, 10]])
def test_a_pixdim_that_is_no_spacing_is_warned_of_beside_a_whole_sform(tmp_path, pixdim):
    path = put(two_forms(tmp_path / "ct.nii", AFFINE, None), "pixdim", pixdim, "<f4")
    grid, findings = read(path)
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-4)
    assert any(f.is_warning and "pixdim" in f.found for f in findings)


@pytest.mark.parametrize("rows", [np.zeros(12), np.tile([1.0, 2, 3, 4], 3), np.full(12, np.nan)])
def test_an_sform_that_is_no_place_gives_way_to_a_whole_qform_with_a_warning(tmp_path, rows):
    path = put(two_forms(tmp_path / "ct.nii", AFFINE, AFFINE, (2, 1)), "srow_x", rows, "<f4")
    grid, findings = read(path)
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-3)
    warning = next(f for f in findings if f.is_warning)
    assert "the sform has a code (2) but is no place" in warning.found
    assert "placed by the qform" in warning.decided


@pytest.mark.parametrize("quaternion", [[2, 0, 0], [np.nan, 0, 0], [1, 1, 1]])
def test_a_qform_that_is_no_place_gives_way_to_a_whole_sform_with_a_warning(tmp_path, quaternion):
    grid, findings = read(put(two_forms(tmp_path / "ct.nii", AFFINE, AFFINE), "quatern_b", quaternion, "<f4"))
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-4)
    assert any(f.is_warning and "the qform has a code (1) but is no place" in f.found for f in findings)


def test_a_file_in_which_no_form_is_a_place_is_refused(tmp_path):
    path = put(two_forms(tmp_path / "ct.nii", AFFINE, None), "srow_x", np.zeros(12), "<f4")
    with pytest.raises(InvalidVolumeError, match="the sform is no place"):
        read(path)
    path = put(two_forms(tmp_path / "both.nii", AFFINE, AFFINE), "srow_x", np.zeros(12), "<f4")
    with pytest.raises(InvalidVolumeError, match=r"the sform is no place .*; the qform is no place"):
        read(put(path, "quatern_b", [2, 0, 0], "<f4"))
    with pytest.raises(InvalidVolumeError, match=r"no qform that places it.*--affine sform"):
        read(path, affine="qform")


def test_a_file_with_neither_code_is_read_by_method_1_with_a_warning(tmp_path):
    path = two_forms(tmp_path / "ct.nii", AFFINE, AFFINE)
    put(put(path, "sform_code", 0, "<i2"), "qform_code", 0, "<i2")
    volume, findings = read_image(path, ReadOptions())
    np.testing.assert_array_equal(volume.array, trunk())
    np.testing.assert_allclose(volume.grid.affine, np.diag([10.0, 10, 10, 1]))
    warning = next(f for f in findings if f.is_warning)
    assert "neither sform nor qform has a code" in warning.found
    assert "method 1" in warning.decided


def test_a_form_without_a_code_can_be_asked_for(tmp_path):
    path = two_forms(tmp_path / "ct.nii", AFFINE, AFFINE)
    put(put(path, "sform_code", 0, "<i2"), "qform_code", 0, "<i2")
    np.testing.assert_allclose(read(path, affine="sform")[0].affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize(("code", "mm"), [(1, 1000.0), (3, 0.001)])
def test_metres_and_micrometres_become_millimetres_and_are_recorded(tmp_path, code, mm):
    affine = AFFINE / mm
    affine[3, 3] = 1
    grid, findings = read(two_forms(tmp_path / "ct.nii", affine, affine, xyzt_units=code))
    np.testing.assert_allclose(grid.affine, AFFINE, rtol=1e-4)
    assert any("turned into millimetres" in f.decided for f in findings)


@pytest.mark.parametrize(("code", "scale"), [(0, 0.001), (0, 1000.0), (1, 1.0), (3, 1.0), (2, 0.001)])
def test_a_unit_that_gives_no_spacing_of_a_scanner_is_refused(tmp_path, code, scale):
    affine = AFFINE * scale
    affine[3, 3] = 1
    with pytest.raises(InvalidVolumeError, match=r"a spacing of .* mm; accepted: 0\.05 to 25 mm"):
        read(two_forms(tmp_path / "ct.nii", affine, affine, xyzt_units=code))


def test_an_unknown_unit_with_a_spacing_of_a_scanner_is_millimetres(tmp_path):
    grid, findings = read(two_forms(tmp_path / "ct.nii", AFFINE, AFFINE, xyzt_units=0))
    np.testing.assert_allclose(grid.affine, AFFINE)
    assert findings == []


# Gantry tilt -----------------------------------------------------------------------------------------------------


def tilted(degrees: float, toward: int = 1) -> np.ndarray:
    """The trunk's grid with planes that shift along y or x from one to the next."""
    affine = AFFINE.copy()
    affine[toward, 2] = AFFINE[2, 2] * np.tan(np.radians(degrees))
    affine[toward, 3] -= affine[toward, 2] * SHAPE[2] / 2
    return affine


@pytest.mark.parametrize("degrees", [20.0, -12.5, 3.0])
@pytest.mark.parametrize("toward", [0, 1])
@pytest.mark.parametrize("with_qform", [False, True])
def test_a_gantry_tilt_is_straightened_onto_the_distance_of_its_planes(tmp_path, degrees, toward, with_qform):
    affine = tilted(degrees, toward)
    image = nib.Nifti1Image(trunk(affine), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1 if with_qform else 0, strip_shears=True)
    image.to_filename(tmp_path / "ct.nii")
    volume, findings = read_image(tmp_path / "ct.nii", ReadOptions())
    assert volume.grid.shape[2] == SHAPE[2]
    np.testing.assert_allclose(volume.grid.spacing, 10, atol=1e-4)
    expected = trunk(volume.grid.affine, volume.grid.shape)
    scanned = volume.array > -1024
    assert np.abs(volume.array - expected)[scanned].mean() < 60
    finding = next(f for f in findings if f.topic == "orientation")
    assert f"{abs(degrees):.2f} degrees" in finding.found
    assert finding.is_warning


def test_axes_that_lean_as_no_gantry_does_are_refused_with_the_angle(tmp_path):
    with pytest.raises(InvalidVolumeError, match=r"tilted by 60\.0 degrees"):
        read(two_forms(tmp_path / "ct.nii", tilted(60), None))
    skewed = AFFINE.copy()
    skewed[0, 1] = skewed[1, 2] = skewed[0, 2] = 3.0
    with pytest.raises(InvalidVolumeError, match=r"not at right angles.*own axes .* degrees from a right angle"):
        read(save_scan(tmp_path / "ct.nii", trunk(), skewed))


def test_the_positions_of_a_plain_scan_are_those_of_its_file(tmp_path):
    grid, findings = read(save_scan(tmp_path / "ct.nii.gz", trunk()))
    np.testing.assert_allclose(grid.world(np.stack(np.indices(SHAPE), -1)), world_of(), atol=1e-4)
    assert findings == []
