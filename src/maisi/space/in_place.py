"""Some voxels of a NIfTI file changed, and all else of it kept: every other byte, header and extensions too."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from maisi.space.checks import bad_volume
from maisi.space.files import comment, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.nifti import open_nifti, suffix_of
from maisi.space.orientation import is_straight, ras_view
from maisi.space.placement import nifti_grid
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume
from maisi.storage.atomic import write_atomically
from maisi.storage.provenance import Provenance


@dataclass(frozen=True, eq=False)
class Original:
    """The file that a volume was read from, to be written again with some voxels changed."""

    image: Any  # of nibabel
    grid: Grid  # of the file's axes

    @property
    def stored(self) -> np.ndarray:
        """A copy of the whole file's bytes, as an array of bytes."""
        return np.frombuffer(self.image.file_map["image"].fileobj.getvalue(), np.uint8).copy()

    def voxels(self, content: np.ndarray) -> np.ndarray:
        """The voxels of a file's bytes, along RAS; writing to them writes to the bytes."""
        dtype, shape = self.image.get_data_dtype(), self.image.shape[:3]
        start, size = int(self.image.dataobj.offset), int(np.prod(shape)) * dtype.itemsize
        array = content[start : start + size].view(dtype).reshape(shape, order="F")
        return ras_view(array, self.grid)

    def values(self, hu: np.ndarray) -> np.ndarray:
        """What the file stores for values in HU: unscaled, rounded and kept within whole numbers where it has such."""
        slope, offset = float(self.image.dataobj.slope), float(self.image.dataobj.inter)
        dtype = self.image.get_data_dtype()
        plain = (hu.astype(np.float64) - offset) / slope
        if dtype.kind == "f":
            return plain.astype(dtype)
        bounds = np.iinfo(dtype)
        return np.clip(np.rint(plain), bounds.min, bounds.max).astype(dtype)


def open_original(path: Path, volume: Volume, options: ReadOptions) -> Original | None:
    """The file of a volume, where it is a NIfTI whose voxels are those of the volume; None for all else.

    Of a DICOM folder and of an oblique image, which was interpolated, there is no such file.
    """
    if path.is_dir() or suffix_of(path) is None:
        return None
    image = open_nifti(path, bad_volume)
    grid, _ = nifti_grid(image, path, bad_volume, options.affine)
    return Original(image, grid) if is_straight(grid) and sorted(grid.shape) == sorted(volume.grid.shape) else None


def write_changed(
    before: Volume,
    after: Volume,
    original: Original | None,
    path: Path,
    offset: float = 0.0,
    provenance: Provenance | None = None,
) -> None:
    """Write `after`, of which all voxels that are as in `before` stay as they are in the original file, bit for bit.

    `offset` was added to the file's values to make them HU. Without an original the volume is written as
    `write_volume` does. What made it is one header extension more; all others stay.
    """
    if original is None:
        write_volume(after, path, provenance)
        return
    content, changed = original.stored, after.array != before.array
    original.voxels(content)[changed] = original.values(after.array[changed] - offset)
    _write(content.tobytes() if provenance is None else _extended(content, original.image, provenance), path)


def _extended(content: np.ndarray, image: Any, provenance: Provenance) -> bytes:
    """The bytes of a file with one header extension more behind those that it has, and its voxels so much later."""
    source = image.header
    told = BytesIO()
    comment(provenance).write_to(told, source.endianness == ">")
    at = int(source["sizeof_hdr"]) + 4 + sum(each.get_sizeondisk() for each in source.extensions)
    header = type(source)(content[: int(source["sizeof_hdr"])].tobytes(), endianness=source.endianness, check=False)
    header["vox_offset"] = at + len(told.getvalue())
    return b"".join(
        [
            header.binaryblock,
            b"\1\0\0\0",
            content[len(header.binaryblock) + 4 : at].tobytes(),
            told.getvalue(),
            content[int(image.dataobj.offset) :].tobytes(),  # what lay between is of no extension
        ]
    )


def write_labels_like(
    labels: LabelMap, original: Original | None, path: Path, provenance: Provenance | None = None
) -> None:
    """Write labels with the axes and the place of the original file, so that voxels of both files go together."""
    if original is None:
        write_labels(labels, path, provenance)
        return
    array = np.zeros(original.image.shape[:3], labels.array.dtype, order="F")
    ras_view(array, original.grid)[:] = labels.array
    source = original.image.header
    header = type(source)(endianness="<")
    header["pixdim"][:4], header["xyzt_units"] = source["pixdim"][:4], source["xyzt_units"]
    for form in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        header[form] = source[form]
    for shift in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[shift] = source[shift]
    header.set_data_dtype(array.dtype)
    if provenance is not None:
        header.extensions.append(comment(provenance))
    kind: Callable[..., Any] = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
    _write(kind(array, None, header).to_bytes(), path)


def _write(content: bytes, path: Path) -> None:
    packed = igzip.compress(content, compresslevel=2, mtime=0) if suffix_of(path) == ".nii.gz" else content
    with write_atomically(path, num_bytes=len(packed)) as temporary:
        temporary.write_bytes(packed)
