"""NIfTI files opened with care: what a file really is, whether it is whole, and voxels as numbers."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import HeaderDataError

from maisi.space.checks import Refusal
from maisi.space.reading import Finding

SUFFIXES = (".nii", ".nii.gz")
ACCEPTED = ".nii, .nii.gz, .nrrd, .mha, or a folder of DICOM files"
_BROKEN = (ImageFileError, HeaderDataError, ValueError, OSError, ArithmeticError, LookupError, TypeError)

# What a file is by its first bytes: where they are, what they are, what to call it, and what to do.
_CONVERT = "convert it to .nii.gz (ITK-SNAP, 3D Slicer and SimpleITK do)"
_SIGNATURES = (
    (0, b"\x1f\x8b", "a gzip file", "name it .nii.gz if a NIfTI is inside"),
    (128, b"DICM", "a DICOM file", "give the folder of its series"),
    (0, b"\x08\x00\x05\x00", "a DICOM file without preamble", "give the folder of its series"),
    (0, b"\x08\x00\x08\x00", "a DICOM file without preamble", "give the folder of its series"),
    (0, b"NRRD", "an NRRD file", "name it .nrrd"),
    (0, b"ObjectType", "a MetaImage", "name it .mha, or .mhd with its voxels in a file beside it"),
    (0, b"NDims", "a MetaImage", "name it .mha, or .mhd with its voxels in a file beside it"),
    (0, b"\x93NUMPY", "a NumPy array, which has no place in the world", "write it with its affine as .nii.gz"),
    (0, b"\x00\x00\x00\x01\x00\x00", "an MGH file of FreeSurfer (.mgh, .mgz)", "mri_convert writes it as .nii.gz"),
    (0, b"\x89HDF", "an HDF5 or MINC file", _CONVERT),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"BZh", "a bzip2 file", "unpack it"),
    (0, b"\xfd7zXZ", "an xz file", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"),
    (0, b"\x89PNG", "a PNG picture", "give the volume that it was taken from"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "give the volume that it was taken from"),
    (0, b"II*\x00", "a TIFF picture", "give the volume that it was taken from"),
    (0, b"MM\x00*", "a TIFF picture", "give the volume that it was taken from"),
    (0, b"version https://git-lfs", "a Git LFS pointer, without its content", "git lfs pull fetches it"),
    (0, b"<", "a web page or XML", "download the file itself"),
)
# What a name says where NIfTI was expected.
_ENDINGS = {
    ".img": ("half of an .hdr/.img pair", "one file: nibabel and FSL's fslchfiletype write pairs as .nii.gz"),
    ".hdr": ("half of an .hdr/.img pair", "one file: nibabel and FSL's fslchfiletype write pairs as .nii.gz"),
    ".img.gz": ("half of an .hdr/.img pair", "one file: nibabel and FSL's fslchfiletype write pairs as .nii.gz"),
    ".hdr.gz": ("half of an .hdr/.img pair", "one file: nibabel and FSL's fslchfiletype write pairs as .nii.gz"),
    ".mgh": ("a file of FreeSurfer", "mri_convert writes it as .nii.gz"),
    ".mgz": ("a file of FreeSurfer", "mri_convert writes it as .nii.gz"),
    ".npy": ("a NumPy array, which has no place in the world", "write it with its affine as .nii.gz"),
    ".npz": ("NumPy arrays, which have no place in the world", "write one with its affine as .nii.gz"),
    ".zip": ("an archive", "unpack it"),
    ".tar": ("an archive", "unpack it"),
    ".gz": ("a gzip file", "name it .nii.gz if a NIfTI is inside"),
}


def suffix_of(path: Path) -> str | None:
    """The ending `.nii` or `.nii.gz` of a name, or None."""
    return next((s for s in reversed(SUFFIXES) if path.name.lower().endswith(s)), None)


def open_nifti(path: Path, refuse: Refusal) -> Any:
    """The nibabel image (its data not yet decoded) of one whole NIfTI-1 or NIfTI-2 file, whatever its voxels are."""
    content = _content(path, refuse)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    cls: Any = next((kind for kind in kinds if kind.header_class.may_contain_header(content[:540])), None)
    if cls is None or _is_half_of_pair(content):
        found, advice = _other_than_nifti(content)
        raise refuse(path, found, f"NIfTI-1 or NIfTI-2 in one file, .nii or .nii.gz{advice}")
    try:
        with _quiet():
            image = cls.from_bytes(content)
            shape = image.shape
    except _BROKEN as error:
        raise refuse(path, f"a broken NIfTI header ({_one_line(error)})", "a valid NIfTI file") from error
    if min(shape, default=0) < 1:
        raise refuse(path, f"a broken NIfTI header (an image of {_times(shape)})", "a valid NIfTI file")
    _check_size(image, len(content), path, refuse)
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of nibabel on stderr about a header: what matters of it is refused or told by the report."""
    level = nibabel_logger.level
    nibabel_logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        nibabel_logger.setLevel(level)


def check_bytes(image: Any) -> list[Finding]:
    """Warnings of bytes that the header does not speak of, after the voxels or before them."""
    size = image.file_map["image"].fileobj.seek(0, 2)
    start, expected = int(image.dataobj.offset), _num_bytes(image)
    findings = []
    if size > expected:
        findings.append(_warned(f"{size - expected} bytes after the last voxel", "left out"))
    after_header = int(image.header["sizeof_hdr"]) + 4 + sum(e.get_sizeondisk() for e in image.header.extensions)
    if start >= after_header + 16:
        findings.append(_warned(f"{start - after_header} bytes between header and voxels", "passed over"))
    return findings + _check_scale(image)


def _check_scale(image: Any) -> list[Finding]:
    """A warning of an offset whose factor is none (0, NaN, infinite), so that both are passed over."""
    file = image.file_map["image"].fileobj
    file.seek(0)
    header = type(image.header)(
        file.read(int(image.header["sizeof_hdr"])), endianness=image.header.endianness, check=False
    )
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    is_factor, is_offset = np.isfinite(slope) and slope != 0, np.isfinite(offset) and offset != 0
    if is_factor or not (is_offset or np.isinf(slope)):
        return []
    return [_warned(f"a scale factor of {slope:g} with an offset of {offset:g}", "values taken as they are stored")]


def _check_size(image: Any, num_bytes: int, path: Path, refuse: Refusal) -> None:
    """Nothing, or the refusal of a header that does not fit the bytes that are there."""
    start, header = int(image.dataobj.offset), int(image.header["sizeof_hdr"])
    if start < header + 4:
        raise refuse(path, f"voxels from byte {start} on, inside the header", f"a vox_offset of {header + 4} or more")
    expected = _num_bytes(image)
    if num_bytes < expected:
        raise refuse(path, f"{num_bytes} of {expected} bytes: the file is truncated", "a complete file")
    plane = image.get_data_dtype().itemsize * int(np.prod(sorted(image.shape[:3])[:2], dtype=object))
    if num_bytes - expected >= plane:
        found = f"{num_bytes - expected} bytes after the last voxel of {_times(image.shape)}"
        raise refuse(path, f"{found}: the header tells less than is there", "a header of the size of its voxels")


def _num_bytes(image: Any) -> int:
    """How long a file must be to hold the voxels that its header speaks of."""
    num_voxels = int(np.prod(image.shape, dtype=object))
    return int(image.dataobj.offset) + int(image.get_data_dtype().itemsize) * num_voxels


def stored_facts(path: Path, refuse: Refusal) -> dict[str, Any]:
    """What the header of a NIfTI file says, by name, whether or not its voxels would be taken."""
    image = open_nifti(path, refuse)
    header = image.header
    slope, inter = image.dataobj.slope, image.dataobj.inter
    return {
        "format": "NIfTI-2" if int(header["sizeof_hdr"]) == 540 else "NIfTI-1",
        "type": str(image.get_data_dtype()),
        "stored_size": [int(n) for n in image.shape],
        "scale_factor": [float(slope), float(inter)],
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
        "unit_code": int(header["xyzt_units"]) & 7,
    }


def check_one_volume(image: Any, path: Path, refuse: Refusal) -> None:
    """Nothing, or the refusal of voxels that are not one real number each, and of any size but a 3-D one."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "colour (RGB)" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise refuse(path, f"{kind} voxels", "one real number a voxel")
    shape = image.shape
    if len(shape) >= 4 and sum(n > 1 for n in shape[3:]) and min(shape[:3]) > 1:
        num = int(np.prod(shape[3:], dtype=object))
        one = "img.slicer[..., 0]" if len(shape) == 4 else "np.asarray(img.dataobj)[..., 0]"
        accepted = f"3-D, at least 2 voxels on each axis: one of them, as nibabel takes it by {one}"
        raise refuse(path, f"a {len(shape)}-D image of {_times(shape)}, {num} volumes in one", accepted)
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise refuse(path, f"a {len(shape)}-D image of {_times(shape)}", "3-D, at least 2 voxels on each axis")


def decoded(image: Any, path: Path, refuse: Refusal) -> np.ndarray:
    """The stored array with the header's scale factor, in file order, 3-D."""
    try:
        with np.errstate(all="ignore"):  # what becomes infinite is refused as such
            array = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        raise refuse(path, f"voxels that cannot be decoded ({_one_line(error)})", "a valid NIfTI file") from error
    return array.reshape(array.shape[:3])


def _content(path: Path, refuse: Refusal) -> bytes:
    suffix = suffix_of(path)
    if not path.exists():
        raise refuse(path, "no such file", "an existing file or folder: " + ACCEPTED)
    if suffix is None:
        ending = next((e for e in _ENDINGS if path.name.lower().endswith(e)), None)
        what, advice = _ENDINGS.get(ending or "", ("", ""))
        found = f"the name ending {path.suffix or '(none)'!r}" + (f", {what}" if what else "")
        raise refuse(path, found, ACCEPTED + (f"; {advice}" if advice else ""))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refuse(path, f"a file that cannot be read ({error.strerror})", "a readable file") from error
    return content if suffix == ".nii" else _unpacked(content, path, refuse)


def _unpacked(content: bytes, path: Path, refuse: Refusal) -> bytes:
    if not content:
        raise refuse(path, "an empty file, not NIfTI", "a whole NIfTI file")
    if content[:2] != b"\x1f\x8b":
        if any(kind.header_class.may_contain_header(content[:540]) for kind in (nib.Nifti1Image, nib.Nifti2Image)):
            raise refuse(path, "a plain NIfTI that is named .nii.gz", f"a gzip file, or the name {path.name[:-3]}")
        found, advice = _other_than_nifti(content)
        raise refuse(path, f"no gzip (a truncated or corrupt gzip, or {found})", f"a whole gzip file{advice}")
    try:
        return igzip.decompress(content)
    except (EOFError, OSError, igzip_lib.IsalError) as error:  # type: ignore[misc]  # its stub says instance, not type
        raise refuse(path, f"a truncated or corrupt gzip ({error})", "a whole gzip file") from error


def _other_than_nifti(content: bytes) -> tuple[str, str]:
    """What a file is that is not NIfTI, and what to do with it, if that is known."""
    for start, signature, name, advice in _SIGNATURES:
        if content[start : start + len(signature)] == signature:
            return f"a file that is not NIfTI but {name}", f"; {advice}"
    if _is_half_of_pair(content):
        return "half of an .hdr/.img pair, not NIfTI in one file", "; " + _ENDINGS[".img"][1]
    if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return (
            "an Analyze 7.5 header, not NIfTI",
            "; convert it, with left and right checked: Analyze does not say them",
        )
    return ("an empty file, not NIfTI", "") if not content else ("a file that is not NIfTI", "")


def _is_half_of_pair(content: bytes) -> bool:
    return content[344:348] == b"ni1\0" or content[4:8] == b"ni2\0"


def _warned(found: str, decided: str) -> Finding:
    return Finding(topic="format", found=found, decided=decided, is_warning=True)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
