"""CT series in DICOM folders: geometry, rescaling, the choice of a series, and what is refused.

The series are made here with pydicom, from a volume whose value tells the world position.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from maisi.errors import InvalidVolumeError
from maisi.space.files import read_volume
from maisi.space.grid import Grid

ROWS, COLUMNS, SLICES = 10, 12, 8
PIXEL_MM, STEP_MM = (1.5, 2.0), 3.0  # between rows, between columns
AXIAL = (1.0, 0, 0, 0, 1.0, 0)
FIRST = np.array([-20.0, -30.0, 100.0])  # LPS


def stored_slice(k: int) -> np.ndarray:
    """Stored values (HU + 1024) that differ in every pixel of every slice."""
    rows, columns = np.indices((ROWS, COLUMNS))
    return (24 + 3 * columns + 50 * rows + 130 * k).astype(np.uint16)


def header(path: Path, series: str, sop_class: str = CTImageStorage, modality: str = "CT") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2.826.0.1.3680043.8.498.1"
    dataset.Modality = modality
    dataset.SeriesDescription = f"series of {modality}"
    return dataset


def put_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()


def write_slice(
    path: Path,
    k: int,
    series: str = "1.2.3",
    *,
    position: np.ndarray | None = None,
    orientation: tuple[float, ...] = AXIAL,
    stored: np.ndarray | None = None,
    rescale: tuple[float, float] = (1, -1024),
    change=lambda dataset: None,
) -> None:
    dataset = header(path, series)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    normal = np.cross(orientation[:3], orientation[3:])
    place = FIRST + k * STEP_MM * normal if position is None else position
    dataset.ImagePositionPatient = [f"{v:.6g}" for v in place]
    dataset.ImageOrientationPatient = [f"{v:.8g}" for v in orientation]
    dataset.PixelSpacing = list(PIXEL_MM)
    dataset.InstanceNumber = 100 - k  # against the order of the positions
    dataset.RescaleSlope, dataset.RescaleIntercept = rescale
    put_pixels(dataset, stored_slice(k) if stored is None else stored)
    change(dataset)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder: Path, series: str = "1.2.3", *, slices=range(SLICES), **options) -> None:
    folder.mkdir(exist_ok=True)
    for k in slices:
        write_slice(folder / f"{series}_{(k * 5) % 17:02d}.dcm", k, series, **options)  # names out of order too


def expected_hu() -> np.ndarray:
    """[x y z] in RAS of an axial series: columns run to the left and rows to the back, so both are flipped."""
    lps = np.stack([stored_slice(k) for k in range(SLICES)], -1).transpose(1, 0, 2).astype(np.float32) - 1024
    return lps[::-1, ::-1]


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


def test_padding_pixels_become_air(tmp_path):
    def pad(dataset: Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2").reshape(ROWS, COLUMNS).astype(np.int16)
        stored[0, 0] = -2000
        put_pixels(dataset, stored)
        dataset.PixelPaddingValue = -2000

    write_series(tmp_path, change=pad)
    array = read_volume(tmp_path).array
    assert (array[-1, -1] == -1024).all()
    assert array.min() == -1024


def test_what_is_not_a_ct_slice_beside_the_series_is_passed_over(tmp_path):
    write_series(tmp_path / "study")
    structures = header(tmp_path / "rtstruct.dcm", "1.2.9", RTStructureSetStorage, "RTSTRUCT")
    structures.save_as(tmp_path / "rtstruct.dcm", enforce_file_format=True)
    sheet = header(tmp_path / "dose.dcm", "1.2.8", SecondaryCaptureImageStorage, "CT")
    sheet.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
    write_slice(
        tmp_path / "scout", 0, "1.2.7", change=lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    (tmp_path / "notes.txt").write_text("a note")
    np.testing.assert_array_equal(read_volume(tmp_path).array, expected_hu())


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


def enhanced(path: Path, slices: list[int]) -> FileDataset:
    dataset = header(path, "1.2.5", EnhancedCTImageStorage)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(slices)
    measures, orientation, values, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(PIXEL_MM), STEP_MM
    orientation.ImageOrientationPatient = list(AXIAL)
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([values])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in slices:
        plane, frame = Dataset(), Dataset()
        plane.ImagePositionPatient = (FIRST + [0, 0, k * STEP_MM]).tolist()
        frame.PlanePositionSequence = Sequence([plane])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    put_pixels(dataset, np.stack([stored_slice(k) for k in slices]))
    return dataset


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


# --- refusals ------------------------------------------------------------------------------------------------------


def drop(name: str):
    return lambda dataset: delattr(dataset, name)


def one_of(series_slices, k: int, **options):
    """The series with slice `k` written differently."""

    def make(folder: Path) -> None:
        write_series(folder, slices=[i for i in series_slices if i != k])
        write_slice(folder / "odd.dcm", k, **options)

    return make


def tilted(folder: Path) -> None:
    for k in range(SLICES):
        write_slice(folder / f"{k}.dcm", k, position=FIRST + [0, k * STEP_MM * np.tan(np.radians(15)), k * STEP_MM])


def uneven(folder: Path) -> None:
    for k in range(SLICES):
        write_slice(folder / f"{k}.dcm", k, position=FIRST + [0, 0, k * STEP_MM + 0.15 * k * k])


def constant(folder: Path) -> None:
    write_series(folder, stored=np.zeros((ROWS, COLUMNS), np.uint16))


def not_hu(folder: Path) -> None:
    write_series(folder, rescale=(1, 0))


def mr(folder: Path) -> None:
    for k in range(3):
        dataset = header(folder / f"{k}.dcm", "1.2.3", MRImageStorage, "MR")
        put_pixels(dataset, stored_slice(k))
        dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def cut_pixels(folder: Path) -> None:
    write_series(folder)
    path = sorted(folder.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-40])


def compressed(folder: Path) -> None:
    def change(dataset: FileDataset) -> None:
        from pydicom.encaps import encapsulate

        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([b"not a code stream at all"])
        dataset["PixelData"].is_undefined_length = True

    write_series(folder, change=change)


BAD = {
    "no DICOM": (lambda f: (f / "a.txt").write_text("?"), r"no CT image among 1 files \(1 not DICOM\)"),
    "MR": (mr, r"no CT image among 3 files \(3 MR\)"),
    "one slice": (lambda f: write_series(f, slices=[0]), r"a single slice \(2-D\)"),
    "missing slice": (
        lambda f: write_series(f, slices=[0, 1, 2, 4, 5, 6]),
        r"1 missing slices \(spacing 3 mm\), between 6\.00 and 12\.00 mm from the first",
    ),
    "three missing": (lambda f: write_series(f, slices=[0, 1, 2, 4, 5, 6, 9, 10]), "3 missing slices"),
    "duplicate": (one_of(range(SLICES), 3, position=FIRST + [0, 0, 12]), "1 duplicate slice positions, at 12.00 mm"),
    "tilt": (tilted, r"gantry tilt: slices shift sideways by up to 5.63 mm \(15.0 degrees overall\)"),
    "uneven": (uneven, "uneven slice spacing, from 3.150 to 4.950 mm"),
    "mixed sizes": (one_of(range(SLICES), 3, stored=stored_slice(0)[:-1]), "mixed sizes 12x9, 12x10"),
    "mixed orientations": (one_of(range(SLICES), 3, orientation=(1.0, 0, 0, 0, 0, -1.0)), "mixed orientations"),
    "mixed spacings": (
        one_of(range(SLICES), 3, change=lambda d: setattr(d, "PixelSpacing", [1.0, 1.0])),
        "mixed pixel spacings 1x1 mm, 2x1.5 mm",
    ),
    "skewed pixels": (lambda f: write_series(f, orientation=(1.0, 0, 0, 0.5, 0.8, 0)), "not at right angles"),
    "no position": (
        lambda f: write_series(f, change=drop("ImagePositionPatient")),
        "cannot be decoded .*(ImagePositionPatient|RescaleIntercept)",
    ),
    "no rescale": (
        lambda f: write_series(f, change=drop("RescaleIntercept")),
        "cannot be decoded .*(ImagePositionPatient|RescaleIntercept)",
    ),
    "no pixels": (lambda f: write_series(f, change=drop("PixelData")), "cannot be decoded"),
    "truncated": (cut_pixels, "cannot be decoded"),
    "compressed": (compressed, "cannot be decoded"),
    "all one value": (constant, "the same value -1024 in every voxel"),
    "not HU": (not_hu, "values from 24 to .*not HU of a CT"),
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
