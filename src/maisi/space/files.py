"""Volumes and label maps in and out of files, checked at the door. Inside is RAS+, mm, HU; outside is anything."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from maisi.space.checks import Refusal, bad_labels, bad_volume
from maisi.space.grid import Grid
from maisi.space.nifti import SUFFIXES, check_bytes, check_one_volume, decoded, open_nifti, suffix_of
from maisi.space.orientation import turn_volume
from maisi.space.placement import nifti_grid
from maisi.space.raster import reader_of
from maisi.space.reading import Finding, ReadOptions
from maisi.space.segments import Segment
from maisi.space.values import settle_values
from maisi.space.volume import LabelMap, Modality, Volume
from maisi.storage.atomic import write_atomically
from maisi.storage.provenance import KEY, NOTICE, Provenance

logger = logging.getLogger(__name__)

SEGMENTATION = ".seg.nrrd"
WRITTEN = (*SUFFIXES, ".nrrd", ".mha")
LABEL_FILES = (*WRITTEN, SEGMENTATION)
LEAST_STEPS = 500.0  # in a range of MR values that are stored as whole numbers
COMMENT = 6  # NIfTI's code for extensions that are a text


def read_volume(path: str | Path, *, modality: Modality = "ct", series: str | None = None) -> Volume:
    """The volume of a NIfTI, NRRD or MetaImage file, or of the CT series of a DICOM folder, turned to RAS, in HU.

    `series` is the UID of the one to take where a folder holds several. Scale factors of the header are applied.
    Oblique images are interpolated onto the nearest RAS grid that covers them, see `turn_to_ras`. With modality "mr"
    the values have no unit and are not checked for HU. What was found that is not plain is logged.

    Raises `InvalidVolumeError` for what is not one finite scalar 3-D image, with what was found and what is accepted.
    """
    volume, findings = read_image(Path(path), ReadOptions(modality=modality, series=series))
    log_findings(path, findings)
    return volume


def read_image(path: Path, options: ReadOptions) -> tuple[Volume, list[Finding]]:
    """The volume of a NIfTI, NRRD or MetaImage file, a DICOM folder or file, along RAS, and what was not plain."""
    if path.is_dir() or (path.is_file() and suffix_of(path) is None):
        from maisi.space.dicom import is_dicom, read_series

        if path.is_dir() or is_dicom(path):
            return read_series(path, options)
    if options.series is not None or options.acquisition is not None:
        found = f"a file, with series {options.series!r}" if options.series else f"acquisition {options.acquisition!r}"
        raise bad_volume(path, found, "--series and --acquisition together with a DICOM folder")
    return read_nifti_volume(path, options) if reader_of(path) is None else read_raster_volume(path, options)


def read_raster_volume(path: Path, options: ReadOptions) -> tuple[Volume, list[Finding]]:
    """The volume of an NRRD or MetaImage file, turned to RAS, and what was found that is not plain."""
    read = reader_of(path)
    assert read is not None
    raster = read(path, bad_volume)
    with np.errstate(over="ignore"):
        array = raster.array(path, bad_volume).astype(np.float32, copy=False)
    array, padding, judged = settle_values(array, path, options)
    return turn_volume(array, raster.grid, options.modality, padding), judged


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


def write_volume(volume: Volume, path: str | Path, provenance: Provenance | None = None) -> None:
    """A NIfTI, NRRD or MetaImage file of int16 values (HU, rounded), RAS, mm, with what made it; whole or not at all.

    Of an MR whose values int16 would coarsen or cannot hold it is of float32. Raises `InvalidVolumeError` for a CT that
    int16 cannot hold and `StorageError` for a disk that is full or locked.
    """
    path = _writable(Path(path), bad_volume)
    if volume.modality != "ct" and not np.isfinite(volume.array).all():
        raise bad_volume(path, "values that are not finite to write", "finite values")
    array = rounded(volume, path) if volume.modality == "ct" or _is_whole(volume.array) else volume.array
    _write(array, volume.grid, path, provenance, {})


def _is_whole(values: np.ndarray) -> bool:
    """Whether rounding to int16 loses no more than a thousandth of the range of values, which have no unit."""
    low, high = float(values.min()), float(values.max())
    return -32768 <= low <= high <= 32767 and (high - low >= LEAST_STEPS or bool((values == np.rint(values)).all()))


def rounded(volume: Volume, path: Path) -> np.ndarray:
    """The values of a volume as int16, or the refusal of those that it cannot hold."""
    low, high = float(volume.array.min()), float(volume.array.max())  # NaN where any value is
    if not (-32768 <= low <= high <= 32767):
        raise bad_volume(path, f"values from {low:g} to {high:g} to write", "finite values from -32768 to 32767")
    return np.rint(volume.array).astype(np.int16)


def write_labels(
    labels: LabelMap, path: str | Path, provenance: Provenance | None = None, segments: Sequence[Segment] = ()
) -> None:
    """A NIfTI, NRRD or MetaImage file of the map's own uint8 or uint16 ids, RAS, mm; it appears whole or not at all.

    `segments` name the structures in a `.seg.nrrd`; other formats have no place for them.
    """
    path = _writable(Path(path), bad_labels)
    keys: dict[str, str] = {}
    if path.name.lower().endswith(SEGMENTATION):
        from maisi.space.label_rasters import segment_keys

        keys = segment_keys(labels, segments, path)
    _write(labels.array, labels.grid, path, provenance, keys)


def _writable(path: Path, refuse: Refusal) -> Path:
    if not path.name.lower().endswith(WRITTEN):
        raise refuse(path, f"the name ending {path.suffix or '(none)'!r} to write", " or ".join(WRITTEN))
    return path


def _write(array: np.ndarray, grid: Grid, path: Path, provenance: Provenance | None, keys: Mapping[str, str]) -> None:
    """A file of the format that its name says."""
    if suffix_of(path) is not None:
        _write_nifti(array, grid, path, provenance)
        return
    from maisi.space.metaimage import write_metaimage
    from maisi.space.nrrd import write_nrrd

    write = write_nrrd if path.name.lower().endswith(".nrrd") else write_metaimage
    write(array, grid, path, {**keys, **({} if provenance is None else {KEY: provenance.text})})


def _write_nifti(array: np.ndarray, grid: Grid, path: Path, provenance: Provenance | None) -> None:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.set_sform(grid.affine, code=1)  # 1: the scanner's own coordinates
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    if provenance is not None:
        image.header.extensions.append(comment(provenance))
        image.header["descrip"] = NOTICE.encode() if provenance.is_synthetic else b""
    content = image.to_bytes()
    if suffix_of(path) == ".nii.gz":
        content = igzip.compress(content, compresslevel=2, mtime=0)  # no time inside: same voxels, same bytes
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def comment(provenance: Provenance) -> Any:
    """The header extension of a NIfTI (code 6, a comment) that says what made it."""
    return nib.nifti1.Nifti1Extension(COMMENT, provenance.text.encode("ascii"))
