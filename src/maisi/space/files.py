"""Volumes and label maps in and out of files, checked at the door. Inside is RAS+, mm, HU; outside is anything."""

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from maisi.errors import InvalidGridError
from maisi.space.checks import Refusal, bad_labels, bad_volume, check_intensities, check_spacing
from maisi.space.grid import Grid
from maisi.space.orientation import turn_to_ras
from maisi.space.volume import OUTSIDE, LabelMap, Modality, Volume
from maisi.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI-1 codes: unknown, metre, millimetre, micrometre


def read_volume(path: str | Path, *, modality: Modality = "ct", series: str | None = None) -> Volume:
    """The volume of a `.nii` or `.nii.gz` file, or of the CT series of a DICOM folder, turned to RAS, in HU.

    `series` is the UID of the one to take where a folder holds several. Scale factors of the header are applied.
    Oblique images are interpolated onto the nearest RAS grid that covers them, see `turn_to_ras`. With modality "mr"
    the values have no unit and are not checked for HU.

    Raises `InvalidVolumeError` for what is not one finite scalar 3-D image, with what was found and what is accepted.
    """
    path = Path(path)
    if path.is_dir():
        if modality != "ct":
            raise bad_volume(path, f"a folder read as {modality}", "DICOM folders of CT; MR as .nii or .nii.gz")
        from maisi.space.dicom import read_series

        return read_series(path, series)
    if series is not None:
        raise bad_volume(path, f"a file, with series {series!r}", "a series UID together with a DICOM folder")
    image = open_nifti(path, bad_volume)
    _check_type_and_shape(image, path, bad_volume)
    array = _scaled(image, path)
    grid = nifti_grid(image, path, bad_volume)
    check_intensities(array, path, modality)
    return Volume(*turn_to_ras(array, grid, OUTSIDE[modality], nearest=False), modality)


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


def _suffix(path: Path) -> str | None:
    return next((s for s in reversed(SUFFIXES) if path.name.lower().endswith(s)), None)


def _writable(path: Path, refuse: Refusal) -> Path:
    if _suffix(path) is None:
        raise refuse(path, f"the name ending {path.suffix or '(none)'!r} to write", " or ".join(SUFFIXES))
    return path


def open_nifti(path: Path, refuse: Refusal) -> Any:
    """The nibabel image (its data not yet decoded) of one whole NIfTI-1 or NIfTI-2 file, whatever its voxels are."""
    content = _content(path, refuse)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    cls: Any = next((kind for kind in kinds if kind.header_class.may_contain_header(content[:540])), None)
    if cls is None:
        raise refuse(path, "a file that is not NIfTI", "NIfTI-1 or NIfTI-2 in one file, .nii or .nii.gz")
    try:
        image = cls.from_bytes(content)
    except (ImageFileError, HeaderDataError, ValueError, OSError) as error:
        raise refuse(path, f"a broken NIfTI header ({error})", "a valid NIfTI file") from error
    expected = image.dataobj.offset + image.get_data_dtype().itemsize * int(np.prod(image.shape, dtype=object))
    if len(content) < expected:
        raise refuse(path, f"{len(content)} of {expected} bytes: the file is truncated", "a complete file")
    return image


def _content(path: Path, refuse: Refusal) -> bytes:
    suffix = _suffix(path)
    if not path.exists():
        raise refuse(path, "no such file", "an existing .nii or .nii.gz file, or a folder of one DICOM CT series")
    if suffix is None:
        raise refuse(path, f"the name ending {path.suffix or '(none)'!r}", ".nii, .nii.gz, or a folder of DICOM files")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refuse(path, f"a file that cannot be read ({error.strerror})", "a readable file") from error
    if suffix == ".nii":
        return content
    try:
        return igzip.decompress(content)
    except (EOFError, OSError, igzip_lib.IsalError) as error:  # type: ignore[misc]  # its stub says instance, not type
        raise refuse(path, f"a truncated or corrupt gzip ({error})", "a whole gzip file") from error


def _check_type_and_shape(image: Any, path: Path, refuse: Refusal) -> None:
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "colour (RGB)" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise refuse(path, f"{kind} voxels", "one real number a voxel")
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        size = "x".join(str(n) for n in shape)
        raise refuse(path, f"a {len(shape)}-D image of {size}", "3-D, at least 2 voxels on each axis")


def _scaled(image: Any, path: Path) -> np.ndarray:
    """The stored array with the header's scale factor, in file order, 3-D."""
    try:
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, ValueError, OSError) as error:
        raise bad_volume(path, f"voxels that cannot be decoded ({error})", "a valid NIfTI file") from error
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused as such
        return array.reshape(array.shape[:3]).astype(np.float32, copy=False)


def nifti_grid(image: Any, path: Path, refuse: Refusal) -> Grid:
    """The grid of the file's axes, in mm; the sform counts before the qform, as nibabel reads them."""
    header = image.header
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        logger.warning("%s has neither sform nor qform: left and right are taken as in NIfTI's method 1", path)
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise refuse(path, f"the unit of length {unit}", f"one of the NIfTI codes {', '.join(map(str, _MM_PER_UNIT))}")
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT[unit]
    try:
        grid = Grid(image.shape[:3], affine)
    except InvalidGridError as error:
        raise refuse(path, str(error), "an affine that is finite and invertible") from error
    check_spacing(grid, path, refuse)
    return grid


def _write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.set_sform(grid.affine, code=1)  # 1: the scanner's own coordinates
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if _suffix(path) == ".nii.gz":
        content = igzip.compress(content, compresslevel=2, mtime=0)  # no time inside: same voxels, same bytes
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)
