"""A volume as a CT series, one file a slice (PS3.3 A.3)."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from maisi.space.checks import bad_volume
from maisi.space.dicom.identity import SYNTHESIS, Study, coded, description, new_dataset
from maisi.space.dicom.slices import Slices
from maisi.space.files import rounded
from maisi.space.grid import Grid
from maisi.space.volume import Volume

SERIES = "ct"
FRAME = "frame of reference"
AXIAL = (1, 0, 0, 0, 1, 0)  # columns run to the left, rows to the back (LPS)
WINDOWS = {"SOFT TISSUE": (40, 400), "LUNG": (-600, 1500), "BONE": (400, 1800)}
"""Centres and widths, HU, that viewers offer; the first is what they show."""


def write_ct(volume: Volume, folder: Path, study: Study) -> Slices:
    """Write the slices from the lowest up, 0001.dcm and on, into a folder that is made; gives them without pixels.

    Raises `InvalidVolumeError` for an MR, and for values that 16 bits cannot hold.
    """
    if volume.modality != "ct":
        raise bad_volume(folder, f"a volume of {volume.modality} to write as DICOM", "a CT")
    stored = rounded(volume, folder)[::-1, ::-1]  # [column row slice]
    folder.mkdir(parents=True, exist_ok=True)
    images = [_write_slice(stored[:, :, k].T, k, volume.grid, folder, study) for k in range(stored.shape[2])]
    return Slices(images, _turned(volume.grid))


def _turned(grid: Grid) -> Grid:
    """An RAS grid with its first axis to the left and its second to the back."""
    affine = grid.affine.copy()
    affine[:2, :2] *= -1
    affine[:3, 3] = grid.world(np.array([grid.shape[0] - 1, grid.shape[1] - 1, 0]))
    return Grid(grid.shape, affine)


def slice_position(grid: Grid, k: int) -> list[float]:
    """The centre of the first pixel of slice `k`, mm in LPS."""
    x, y, z = grid.world(np.array([grid.shape[0] - 1, grid.shape[1] - 1, k]))
    return [-float(x) + 0.0, -float(y) + 0.0, float(z) + 0.0]


def ds(values: Any) -> list[str]:
    """Numbers as decimal strings of up to 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _write_slice(pixels: np.ndarray, k: int, grid: Grid, folder: Path, study: Study) -> Any:
    dataset = new_dataset(study, CTImageStorage, study.uid(SERIES, k), "CT", [SERIES])
    x, y, z = grid.spacing
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 1, k + 1, 1
    dataset.SeriesDescription = "Synthetic CT" if study.is_synthetic else "CT"
    dataset.BodyPartExamined, dataset.PatientPosition, dataset.KVP = study.body_part, "HFS", None
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = study.uid(FRAME), ""
    dataset.PatientOrientation = ["L", "P"]
    dataset.ImagePositionPatient = ds(slice_position(grid, k))
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.PixelSpacing, dataset.SliceThickness = ds((y, x)), ds([z])[0]
    dataset.SpacingBetweenSlices, dataset.SliceLocation = ds([z])[0], ds([slice_position(grid, k)[2]])[0]
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    if study.provenance is not None:
        dataset.DerivationDescription = dataset.ImageComments = description(study)[:1024]
    if study.is_synthetic:
        dataset.DerivationCodeSequence = [coded(SYNTHESIS)]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.WindowCenter = [centre for centre, _ in WINDOWS.values()]
    dataset.WindowWidth = [width for _, width in WINDOWS.values()]
    dataset.WindowCenterWidthExplanation = list(WINDOWS)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(folder / f"{k + 1:04d}.dcm", enforce_file_format=True)
    del dataset.PixelData
    return dataset
