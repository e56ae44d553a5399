"""Volumes and label maps in and out of files, checked at the door. Inside is RAS+, mm, HU; outside is anything."""

import logging
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from maisi.space.checks import Refusal, bad_labels, bad_volume
from maisi.space.grid import Grid
from maisi.space.nifti import SUFFIXES, check_bytes, check_one_volume, decoded, open_nifti, suffix_of
from maisi.space.orientation import turn_volume
from maisi.space.placement import nifti_grid
from maisi.space.reading import Finding, ReadOptions
from maisi.space.values import settle_values
from maisi.space.volume import LabelMap, Modality, Volume
from maisi.storage.atomic import write_atomically

logger = logging.getLogger(__name__)


def read_volume(path: str | Path, *, modality: Modality = "ct", series: str | None = None) -> Volume:
    """The volume of a `.nii` or `.nii.gz` file, or of the CT series of a DICOM folder, turned to RAS, in HU.

    `series` is the UID of the one to take where a folder holds several. Scale factors of the header are applied.
    Oblique images are interpolated onto the nearest RAS grid that covers them, see `turn_to_ras`. With modality "mr"
    the values have no unit and are not checked for HU. What was found that is not plain is logged.

    Raises `InvalidVolumeError` for what is not one finite scalar 3-D image, with what was found and what is accepted.
    """
    volume, findings = read_image(Path(path), ReadOptions(modality=modality, series=series))
    log_findings(path, findings)
    return volume


def read_image(path: Path, options: ReadOptions) -> tuple[Volume, list[Finding]]:
    """The volume of a NIfTI file, a DICOM folder or a DICOM file, along RAS, and what was found that is not plain."""
    if path.is_dir() or (path.is_file() and suffix_of(path) is None):
        from maisi.space.dicom import is_dicom, read_series

        if path.is_dir() or is_dicom(path):
            return read_series(path, options)
    if options.series is not None or options.acquisition is not None:
        found = f"a file, with series {options.series!r}" if options.series else f"acquisition {options.acquisition!r}"
        raise bad_volume(path, found, "--series and --acquisition together with a DICOM folder")
    return read_nifti_volume(path, options)


def read_nifti_volume(path: Path, options: ReadOptions) -> tuple[Volume, list[Finding]]:
    """The volume of a `.nii` or `.nii.gz` file, turned to RAS, and what was found that is not plain."""
    image = open_nifti(path, bad_volume)
    check_one_volume(image, path, bad_volume)
    findings = check_bytes(image)
    grid, placing = nifti_grid(image, path, bad_volume, options.affine)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused as such
        array = decoded(image, path, bad_volume).astype(np.float32, copy=False)
    array, padding, judged = settle_values(array, path, options)
    return turn_volume(array, grid, options.modality, padding), [*findings, *placing, *judged]


def log_findings(path: str | Path, findings: Iterable[Finding]) -> None:
    """Nothing; what was found is logged, a warning as such."""
    for finding in findings:
        level = logging.WARNING if finding.is_warning else logging.INFO
        logger.log(level, "%s: %s; %s", path, finding.found, finding.decided)


def write_volume(volume: Volume, path: str | Path) -> None:
    """A `.nii` or `.nii.gz` file of int16 values (HU, rounded), RAS, mm; it appears whole or not at all.

    Raises `InvalidVolumeError` for values that int16 cannot hold and `StorageError` for a disk that is full or locked.
    """
    path = _writable(Path(path), bad_volume)
    low, high = float(volume.array.min()), float(volume.array.max())  # NaN where any value is
    if not (-32768 <= low <= high <= 32767):
        raise bad_volume(path, f"values from {low:g} to {high:g} to write", "finite values from -32768 to 32767")
    _write_nifti(np.rint(volume.array).astype(np.int16), volume.grid, path)


def write_labels(labels: LabelMap, path: str | Path) -> None:
    """A `.nii` or `.nii.gz` file of the map's own uint8 or uint16 ids, RAS, mm; it appears whole or not at all."""
    _write_nifti(labels.array, labels.grid, _writable(Path(path), bad_labels))


def _writable(path: Path, refuse: Refusal) -> Path:
    if suffix_of(path) is None:
        raise refuse(path, f"the name ending {path.suffix or '(none)'!r} to write", " or ".join(SUFFIXES))
    return path


def _write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.set_sform(grid.affine, code=1)  # 1: the scanner's own coordinates
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if suffix_of(path) == ".nii.gz":
        content = igzip.compress(content, compresslevel=2, mtime=0)  # no time inside: same voxels, same bytes
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)
