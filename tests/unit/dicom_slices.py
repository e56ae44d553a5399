"""DICOM files for tests: small CT series whose every pixel tells its place, as scanners and tools write them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

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
    change: Callable[[FileDataset], object] = lambda dataset: None,
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


def write_series(folder: Path, series: str = "1.2.3", *, slices: Iterable[int] = range(SLICES), **options) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for k in slices:
        write_slice(folder / f"{series}_{(k * 5) % 17:02d}.dcm", k, series, **options)  # names out of order too


def expected_hu() -> np.ndarray:
    """[x y z] in RAS of an axial series: columns run to the left and rows to the back, so both are flipped."""
    lps = np.stack([stored_slice(k) for k in range(SLICES)], -1).transpose(1, 0, 2).astype(np.float32) - 1024
    return lps[::-1, ::-1]


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
