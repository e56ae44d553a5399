"""What NRRD and MetaImage files hold: an array in file order, its place, and entries of keys and values."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip_lib

from maisi.errors import InvalidGridError
from maisi.space.checks import Refusal, check_spacing
from maisi.space.grid import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to LPS and back."""

MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "?", "none", "unknown"}
LARGEST_BYTES = 64 * 2**30  # of voxels that a header may speak of
GZIP, ZLIB = 31, 15  # zlib's window bits for the two wrappings


@dataclass(frozen=True, eq=False)
class Raster:
    """One image of a file: `[layer, x, y, z]` in file order, the grid of its axes in RAS, and its keys and values."""

    layers: np.ndarray
    grid: Grid
    fields: Mapping[str, str]
    kind: str  # of the format, for people

    def array(self, path: Path, refuse: Refusal) -> np.ndarray:
        """The one layer `[x y z]`, or the refusal of several values a voxel."""
        if len(self.layers) != 1:
            raise refuse(path, f"{len(self.layers)} values a voxel", "one real number a voxel")
        single: np.ndarray = self.layers[0]
        return single


def content_of(path: Path, refuse: Refusal) -> bytes:
    """The whole content of a file; raises where there is none or it cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise refuse(path, "no such file", "an existing file") from error
    except OSError as error:
        raise refuse(path, f"a file that cannot be read ({error.strerror})", "a readable file") from error
    if not content:
        raise refuse(path, "an empty file", "a whole file")
    return content


def unpacked(packed: bytes, num_bytes: int, window_bits: int, path: Path, refuse: Refusal) -> bytes:
    """Compressed voxels, of which no more are unpacked than the header speaks of."""
    decoder = zlib.decompressobj(window_bits)
    try:
        content = decoder.decompress(packed, num_bytes + 1)
    except zlib.error as error:
        raise refuse(path, f"voxels that cannot be decompressed ({error})", "a whole file") from error
    if len(content) > num_bytes:
        raise refuse(path, f"more voxels than the {num_bytes} bytes that the header tells", "a header of its voxels")
    return content


def packed_zlib(content: bytes) -> bytes:
    """Bytes in the wrapping of zlib; equal bytes give equal ones."""
    compressed: bytes = igzip_lib.compress(content, level=2, flag=igzip_lib.COMP_ZLIB)
    return compressed


def placed_layers(
    content: bytes, shape: Sequence[int], layer_axis: int | None, dtype: np.dtype, path: Path, refuse: Refusal
) -> np.ndarray:
    """Voxels `[layer, x, y, z]` of raw bytes whose first axis is the fastest."""
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(content) < expected:
        raise refuse(path, f"{len(content)} of {expected} bytes of voxels: the file is truncated", "a complete file")
    if len(content) > expected:
        raise refuse(path, f"{len(content) - expected} bytes after the last voxel", "a header of its voxels")
    array = np.frombuffer(content, dtype).reshape(tuple(shape), order="F")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array[None] if layer_axis is None else np.moveaxis(array, layer_axis, 0)


def grid_of(
    shape: Sequence[int], axes: np.ndarray, origin: Sequence[float], to_ras: np.ndarray, path: Path, refuse: Refusal
) -> Grid:
    """The grid of axes (3, 3: one a row, mm) in a space that `to_ras` (4, 4) takes to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes).T
    affine[:3, 3] = origin
    if min(shape) < 2:
        raise refuse(path, f"an image of {'x'.join(map(str, shape))}", "3-D, at least 2 voxels on each axis")
    try:
        grid = Grid((shape[0], shape[1], shape[2]), to_ras @ affine)
    except InvalidGridError as error:
        raise refuse(
            path, f"an impossible geometry ({error})", "three axes with a length each, not in one plane"
        ) from error
    check_spacing(grid, path, refuse)
    return grid


def numbers(text: str, count: int, name: str, path: Path, refuse: Refusal) -> list[float]:
    """That many finite numbers of a header's entry."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise refuse(path, f"the {name} {text[:60]!r}", f"{count} finite numbers")
    return values


def whole_numbers(text: str, count: int, name: str, path: Path, refuse: Refusal) -> list[int]:
    """That many whole numbers above 0 of a header's entry."""
    words = text.split()
    if len(words) != count or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise refuse(path, f"the {name} {text[:60]!r}", f"{count} whole numbers above 0")
    return [int(word) for word in words]


def decimal(value: float) -> str:
    """A number as short as it can be written without loss."""
    return repr(float(value)) if value != round(value) or abs(value) > 1e15 else str(int(value))


ReadRaster = Callable[[Path, Refusal], Raster]


def reader_of(path: Path) -> ReadRaster | None:
    """What reads a file of that name; None for other formats."""
    name = path.name.lower()
    if name.endswith((".nrrd", ".nhdr")):
        from maisi.space.nrrd import read_nrrd

        return read_nrrd
    if name.endswith((".mha", ".mhd")):
        from maisi.space.metaimage import read_metaimage

        return read_metaimage
    return None


def check_millimetres(units: Sequence[str], path: Path, refuse: Refusal) -> None:
    """Nothing, or the refusal of lengths in another unit; what tells none is in mm, as both formats have it."""
    other = [unit for unit in units if unit.strip().lower() not in MILLIMETRES]
    if other:
        raise refuse(path, f"lengths in {other[0][:20]!r}", "mm")


def checked_shape(shape: Sequence[int], dtype: np.dtype, path: Path, refuse: Refusal) -> int:
    """How many bytes the voxels of a shape are; raises for more than any volume has."""
    num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if num_bytes > LARGEST_BYTES:
        raise refuse(path, f"{num_bytes} bytes of voxels", f"up to {LARGEST_BYTES}")
    return num_bytes
