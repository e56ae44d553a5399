"""CT series in DICOM folders: geometry, rescaling, the choice of a series, and what is refused.

The series are made here with pydicom, from a volume whose value tells the world position.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_slices import (
    COLUMNS,
    FIRST,
    PIXEL_MM,
    ROWS,
    SLICES,
    STEP_MM,
    enhanced,
    expected_hu,
    header,
    put_pixels,
    stored_slice,
    write_series,
    write_slice,
)
from pydicom.uid import MRImageStorage

from maisi.errors import InvalidVolumeError
from maisi.space.dicom import read_series
from maisi.space.files import read_volume
from maisi.space.grid import Grid
from maisi.space.reading import ReadOptions


def test_an_axial_series_is_sorted_by_position_scaled_to_hu_and_turned_to_ras(tmp_path):
    write_series(tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert volume.array.dtype == np.float32
    assert volume.grid.spacing == (2.0, 1.5, 3.0)
    last_column_last_row = FIRST + [(COLUMNS - 1) * 2.0, (ROWS - 1) * 1.5, 0]
    np.testing.assert_allclose(volume.grid.origin, last_column_last_row * [-1, -1, 1])


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0)]
)
def test_coronal_sagittal_and_turned_series_put_every_pixel_at_its_world_position(tmp_path, orientation):
    write_series(tmp_path, orientation=tuple(float(v) for v in orientation))
    volume = read_volume(tmp_path)
    right, down = np.array(orientation[:3]), np.array(orientation[3:])
    for column, row, k in [(0, 0, 0), (COLUMNS - 1, 0, 0), (3, 4, 5), (0, ROWS - 1, SLICES - 1)]:
        lps = FIRST + right * column * PIXEL_MM[1] + down * row * PIXEL_MM[0] + np.cross(right, down) * k * STEP_MM
        index = volume.grid.index(lps * [-1, -1, 1])
        np.testing.assert_allclose(index, np.rint(index), atol=1e-5)
        assert volume.array[tuple(np.rint(index).astype(int))] == stored_slice(k)[row, column] - 1024.0


def test_an_oblique_series_is_interpolated_onto_a_ras_grid(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    orientation = (1.0, 0.0, 0.0, 0.0, c, s)
    write_series(tmp_path, orientation=orientation)
    volume = read_volume(tmp_path)
    assert volume.grid.is_ras
    normal = np.cross(orientation[:3], orientation[3:])
    directions = np.array([np.array(orientation[:3]) * 2.0, np.array(orientation[3:]) * 1.5, normal * 3.0]).T
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.diag([-1, -1, 1]) @ directions, FIRST * [-1, -1, 1]
    source = Grid((COLUMNS, ROWS, SLICES), affine)
    index = source.index(volume.grid.world(np.stack(np.indices(volume.grid.shape), -1)))
    inside = ((index >= 0) & (index <= np.array(source.shape) - 1)).all(-1)
    assert inside.sum() > 300
    found = (24 + index @ [3, 50, 130] - 1024)[inside]  # the values are linear in the indices
    np.testing.assert_allclose(volume.array[inside], found, atol=0.5)
    assert (volume.array[((index < -0.51) | (index > np.array(source.shape) - 0.49)).any(-1)] == -1024).all()


def test_each_slice_has_its_own_rescale_and_signed_pixels_are_read(tmp_path):
    for k in range(SLICES):
        slope, intercept = 0.5 + 0.25 * k, -1024.0 + 10 * k
        stored = np.rint((stored_slice(k) - 1024.0 - intercept) / slope).astype(np.int16)
        write_slice(tmp_path / f"{k}", k, stored=stored, rescale=(slope, intercept))
    np.testing.assert_allclose(read_volume(tmp_path).array, expected_hu(), atol=1.2)


def test_several_series_are_listed_and_one_is_chosen_by_uid(tmp_path):
    write_series(tmp_path, "1.2.3")
    write_series(tmp_path, "1.2.4", slices=range(5))
    with pytest.raises(InvalidVolumeError) as error:
        read_volume(tmp_path)
    for words in ("2 CT series", "1.2.3 (series of CT, 8 files)", "1.2.4 (series of CT, 5 files)"):
        assert words in str(error.value)
    assert read_volume(tmp_path, series="1.2.4").grid.shape == (COLUMNS, ROWS, 5)
    with pytest.raises(InvalidVolumeError, match=r"no CT series 9\.9; accepted: one of: 1\.2\.3"):
        read_volume(tmp_path, series="9.9")


def test_an_enhanced_multi_frame_ct_reads_as_its_single_slices_would(tmp_path):
    path = tmp_path / "enhanced.dcm"
    enhanced(path, [3, 1, 0, 2, 7, 6, 5, 4]).save_as(path, enforce_file_format=True)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    write_series(tmp_path / "single")
    assert volume.grid.is_close(read_volume(tmp_path / "single").grid)


def test_frames_without_positions_are_refused(tmp_path):
    dataset = enhanced(tmp_path / "enhanced.dcm", [0, 1, 2])
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    with pytest.raises(InvalidVolumeError, match="3 frames without their positions"):
        read_volume(tmp_path)


@pytest.mark.parametrize("degrees", [15.0, -20.0])
def test_planes_that_shift_sideways_are_straightened_at_the_distance_of_the_planes(tmp_path, degrees):
    shifted(degrees)(tmp_path)
    volume, findings = read_series(tmp_path)
    np.testing.assert_allclose(volume.grid.spacing, (2.0, 1.5, 3.0))
    assert volume.grid.shape[2] == SLICES
    check_linear(volume, shifted_grid(degrees))
    assert f"a gantry tilt of {abs(degrees):.1f} degrees" in next(f.found for f in findings if f.topic == "place")


def test_a_scan_under_a_tilted_gantry_keeps_its_places(tmp_path):
    c, s = np.cos(np.radians(18)), np.sin(np.radians(18))
    for k in range(SLICES):
        write_slice(tmp_path / f"{k}", k, orientation=(1.0, 0, 0, 0, c, -s), position=FIRST + [0, 0, k * STEP_MM])
    volume, findings = read_series(tmp_path)
    np.testing.assert_allclose(volume.grid.spacing, (2.0, 1.5, 3.0 * c), rtol=1e-6)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = (2, 0, 0), (0, 1.5 * c, -1.5 * s), (0, 0, 3), FIRST
    check_linear(volume, Grid((COLUMNS, ROWS, SLICES), np.diag([-1, -1, 1, 1]) @ affine))
    assert any("a gantry tilt of 18.0 degrees" in finding.found for finding in findings)


def test_a_tilt_in_the_header_alone_is_told_and_the_positions_count(tmp_path):
    write_series(tmp_path, change=lambda d: setattr(d, "GantryDetectorTilt", 12.0))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert [f.found for f in findings if f.is_warning] == [
        "a gantry tilt of 12.0 degrees in the header, of which the positions show nothing"
    ]


def shifted_grid(degrees: float) -> Grid:
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    affine[1, 2], affine[:3, 3] = STEP_MM * np.tan(np.radians(degrees)), FIRST
    return Grid((COLUMNS, ROWS, SLICES), np.diag([-1, -1, 1, 1]) @ affine)


def check_linear(volume, source: Grid) -> None:
    """Every voxel within the source holds what the formula of `stored_slice` gives at its place; beyond lies air."""
    index = source.index(volume.grid.world(np.stack(np.indices(volume.grid.shape), -1)))
    inside = ((index >= 0) & (index <= np.array(source.shape) - 1)).all(-1)
    assert inside.sum() > 300
    np.testing.assert_allclose(volume.array[inside], (24 + index @ [3, 50, 130] - 1024)[inside], atol=0.1)
    assert (volume.array[((index < -0.51) | (index > np.array(source.shape) - 0.49)).any(-1)] == -1024).all()


@pytest.mark.parametrize(
    ("orientation", "name"), [((-1.0, 0, 0, 0, 1, 0), "feet first"), ((-1.0, 0, 0, 0, -1, 0), "prone")]
)
def test_feet_first_and_prone_scans_lie_where_their_positions_say(tmp_path, orientation, name):
    lps = np.stack([stored_slice(k) for k in range(SLICES)], -1).transpose(1, 0, 2).astype(np.float32) - 1024
    for k in range(SLICES):
        position = FIRST + [0, 0, -k * STEP_MM]
        write_slice(tmp_path / f"{k}", k, position=position, orientation=orientation, change=lambda d: None)
    volume = read_volume(tmp_path)
    flips = tuple(slice(None, None, -1 if step > 0 else 1) for step in (orientation[0], orientation[4])) + (
        slice(None, None, -1),
    )
    np.testing.assert_array_equal(volume.array, lps[flips])
    np.testing.assert_allclose(volume.grid.origin[2], FIRST[2] - (SLICES - 1) * STEP_MM)


def test_an_mr_asked_of_a_dicom_folder_is_refused(tmp_path):
    write_series(tmp_path)
    with pytest.raises(InvalidVolumeError, match="DICOM read as mr"):
        read_series(tmp_path, ReadOptions(modality="mr"))


# --- refusals ------------------------------------------------------------------------------------------------------


def drop(name: str):
    return lambda dataset: delattr(dataset, name)


def one_of(series_slices, k: int, **options):
    """The series with slice `k` written differently."""

    def make(folder: Path) -> None:
        write_series(folder, slices=[i for i in series_slices if i != k])
        write_slice(folder / "odd.dcm", k, **options)

    return make


def uneven(folder: Path) -> None:
    for k in range(SLICES):
        write_slice(folder / f"{k}.dcm", k, position=FIRST + [0, 0, k * STEP_MM + 0.15 * k * k])


def constant(folder: Path) -> None:
    write_series(folder, stored=np.zeros((ROWS, COLUMNS), np.uint16))


def not_hu(folder: Path) -> None:
    write_series(folder, rescale=(1, -2048))


def mr(folder: Path) -> None:
    for k in range(3):
        dataset = header(folder / f"{k}.dcm", "1.2.3", MRImageStorage, "MR")
        put_pixels(dataset, stored_slice(k))
        dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def shifted(degrees: float):
    """Axial planes that shift along y from one to the next."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for k in range(SLICES):
            write_slice(
                folder / f"{k}.dcm", k, position=FIRST + [0, k * STEP_MM * np.tan(np.radians(degrees)), k * STEP_MM]
            )

    return make


def shifted_unevenly(folder: Path) -> None:
    for k in range(SLICES):
        write_slice(folder / f"{k}.dcm", k, position=FIRST + [0, 0.4 * k * k, k * STEP_MM])


BAD = {
    "no DICOM": (lambda f: (f / "a.txt").write_text("?"), r"no CT image among 1 files: 1 not DICOM \(a\.txt\)"),
    "MR": (mr, r"no CT image among 3 files: 3 MR \(0\.dcm, 1\.dcm, 2\.dcm\)"),
    "one slice": (lambda f: write_series(f, slices=[0]), r"a single slice \(2-D\), 1\.2\.3_00\.dcm"),
    "missing slice": (
        lambda f: write_series(f, slices=[0, 1, 2, 4, 5, 6]),
        r"1 missing slice \(spacing 3 mm\): between 1\.2\.3_10\.dcm \(z = 106 mm\) and 1\.2\.3_03\.dcm \(z = 112 mm\)",
    ),
    "three missing": (lambda f: write_series(f, slices=[0, 1, 2, 4, 5, 6, 9, 10]), "3 missing slices"),
    "duplicate": (
        one_of(range(SLICES), 3, position=FIRST + [0, 0, 12]),
        r"1 duplicate slice positions: between 1\.2\.3_03\.dcm \(z = 112 mm\) and odd\.dcm \(z = 112 mm\)",
    ),
    "one place": (
        lambda f: write_series(f, change=lambda d: setattr(d, "ImagePositionPatient", [1.0, 2.0, 3.0])),
        r"8 slices that all lie at one place, \(1, 2, 3\) mm: 1\.2\.3_",
    ),
    "shift": (shifted_unevenly, r"shift sideways by up to 19\.60 mm, not evenly \(by 4\.\d+ mm at \d\.dcm\)"),
    "steep": (shifted(50), r"a tilt of 50\.0 degrees\); accepted: a tilt of up to 45 degrees"),
    "uneven": (
        uneven,
        r"uneven slice spacing, from 3\.150 to 4\.950 mm .*: narrowest between 0\.dcm \(z = 100 mm\) and 1",
    ),
    "mixed sizes": (one_of(range(SLICES), 3, stored=stored_slice(0)[:-1]), r"mixed sizes.*: odd\.dcm \(12x9 pixels of"),
    "mixed orientations": (
        one_of(range(SLICES), 3, orientation=(1.0, 0, 0, 0, 0, -1.0)),
        r"1 missing slice .*; passed over as no slices: odd\.dcm",
    ),
    "mixed spacings": (
        one_of(range(SLICES), 3, change=lambda d: setattr(d, "PixelSpacing", [1.0, 1.0])),
        r"mixed sizes, spacings or orientations: odd\.dcm \(12x10 pixels of 1x1 mm",
    ),
    "skewed pixels": (lambda f: write_series(f, orientation=(1.0, 0, 0, 0.5, 0.8, 0)), "not at right angles"),
    "no position": (
        lambda f: write_series(f, change=drop("ImagePositionPatient")),
        r"no CT image among 8 files: 8 CT sheet without a position \(1\.2\.3_00\.dcm, ",
    ),
    "half a position": (
        one_of(range(SLICES), 3, change=lambda d: setattr(d, "ImagePositionPatient", [1.0, 2.0])),
        r"odd\.dcm .*the ImagePositionPatient '\[1\.0, 2\.0\]'; accepted: 3 finite numbers",
    ),
    "no pixel spacing": (lambda f: write_series(f, change=drop("PixelSpacing")), "no PixelSpacing"),
    "half a rescale": (lambda f: write_series(f, change=drop("RescaleIntercept")), "RescaleSlope alone"),
    "all one value": (constant, "the same value -1024 in every voxel"),
    "not HU": (not_hu, r"values from -2024 to .*not HU of a CT"),
    "spacing": (
        lambda f: write_series(f, change=lambda d: setattr(d, "PixelSpacing", [1500.0, 2000.0])),
        "2000 x 1500 x 3 mm; accepted: 0.05 to 25 mm",
    ),
    "no pixel size": (
        lambda f: write_series(f, change=lambda d: setattr(d, "PixelSpacing", [0, 0])),
        "impossible geometry",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_series_that_is_no_whole_ct_is_refused_with_what_was_found(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path)
    with pytest.raises(InvalidVolumeError, match=words) as error:
        read_volume(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "accepted: " in str(error.value)


def test_files_are_read_without_importing_torch():
    code = "import sys, maisi.space.files, maisi.space.dicom, maisi.space.resample; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 0
