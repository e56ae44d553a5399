"""The same content on another grid: a `Volume` is interpolated, a `LabelMap` takes the nearest voxel."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from scipy import sparse

from maisi.errors import InvalidGridError
from maisi.space.grid import Grid, checked_spacing
from maisi.space.volume import LabelMap, Volume

Image = TypeVar("Image", Volume, LabelMap)

# Voxel positions are rounded to this many decimals, so that a grid that is half a voxel away to within rounding
# decides its ties one way only, and whole steps copy voxels exactly.
_DECIMALS = 5
_TRUNCATE = 4.0  # the gaussian ends at this many sigma


def resample(x: Image, grid: Grid) -> Image:
    """`x` on `grid` (RAS); what lies outside its field of view is -1024 HU for CT, 0 for MR and labels.

    A volume is interpolated linearly. Where an axis gets coarser by a factor f = new spacing / old spacing > 1, it is
    first smoothed by a gaussian with sigma = (f - 1) / 2 old voxels (the rule of scikit-image's `resize`), ended at 4
    sigma, edges repeated. Voxels that were not scanned take no part: a new voxel whose nearest one was not scanned was
    not scanned either. A label map takes the id of the nearest voxel. Equal grids give back `x` itself.
    """
    if not grid.is_ras:
        raise InvalidGridError(f"can resample onto a grid along RAS only, got {grid}")
    if grid == x.grid:
        return x
    positions = [_positions(x.grid, grid, axis) for axis in range(3)]
    if isinstance(x, LabelMap):
        return replace(x, array=_filled(_nearest(x.array, positions), positions, x), grid=grid)
    if x.padding is None:
        return replace(x, array=_filled(_linear(x.array, positions, _coarser(x, grid)), positions, x), grid=grid)
    padding = _nearest(x.padding, positions)
    array = _filled(_scanned_mean(x, positions, _coarser(x, grid), padding), positions, x)
    return replace(x, array=array, grid=grid, padding=padding)


def with_spacing(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid over the same field of view (same centre, to the nearest voxel count) with voxels of `spacing` mm."""
    spacing = checked_spacing(spacing)
    shape = [max(1, round(length / s)) for length, s in zip(grid.fov_mm, spacing, strict=True)]
    scale = np.array(spacing) / grid.spacing
    center = (np.array(grid.shape) - 1) / 2
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * scale
    affine[:3, 3] = grid.world(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def crop(x: Image, start: Sequence[int], stop: Sequence[int]) -> Image:
    """The voxels from `start` up to but without `stop`, where they were in the world."""
    inside = all(0 <= a < b <= n for a, b, n in zip(start, stop, x.grid.shape, strict=True))
    if not inside:
        raise InvalidGridError(
            f"cannot crop {tuple(start)} to {tuple(stop)} out of {x.grid.shape}; "
            "accepted: 0 <= start < stop <= size on each axis"
        )
    window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    array = np.ascontiguousarray(x.array[window])
    grid = x.grid.window(start, array.shape)
    if not isinstance(x, LabelMap) and x.padding is not None:
        return replace(x, array=array, grid=grid, padding=np.ascontiguousarray(x.padding[window]))
    return replace(x, array=array, grid=grid)


def pad(x: Image, before: Sequence[int], after: Sequence[int]) -> Image:
    """`x` with that many voxels of outside value (-1024 HU, 0) added on each side, where it was in the world."""
    widths = list(zip(before, after, strict=True))
    if len(widths) != 3 or any(w < 0 for pair in widths for w in pair):
        raise InvalidGridError(f"cannot pad by {tuple(before)} and {tuple(after)}; accepted: three numbers >= 0 each")
    array = np.pad(x.array, widths, constant_values=x.outside)
    grid = x.grid.window([-b for b in before], array.shape)
    if not isinstance(x, LabelMap) and x.padding is not None:
        return replace(x, array=array, grid=grid, padding=np.pad(x.padding, widths, constant_values=True))
    return replace(x, array=array, grid=grid)


def fit(x: Image, shape: Sequence[int]) -> Image:
    """`x` cropped or padded around its centre to `shape`; of an odd rest the extra voxel is at the high end."""
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise InvalidGridError(f"shape {tuple(shape)} is not three positive whole numbers")
    spare = [have - want for have, want in zip(x.grid.shape, shape, strict=True)]
    start = [max(0, s) // 2 for s in spare]
    cropped = crop(x, start, [a + min(have, want) for a, have, want in zip(start, x.grid.shape, shape, strict=True)])
    missing = [max(0, -s) for s in spare]
    return pad(cropped, [m // 2 for m in missing], [m - m // 2 for m in missing])


def _positions(source: Grid, target: Grid, axis: int) -> np.ndarray:
    """Where the target's voxel centres lie on one axis of the source, in fractional source indices."""
    world = target.origin[axis] + np.arange(target.shape[axis]) * target.spacing[axis]
    return np.round((world - source.origin[axis]) / source.spacing[axis], _DECIMALS)


def _coarser(x: Volume, grid: Grid) -> list[float]:
    return [new / old for new, old in zip(grid.spacing, x.grid.spacing, strict=True)]


def _nearest(array: np.ndarray, positions: list[np.ndarray]) -> np.ndarray:
    indices = [np.clip(np.floor(p + 0.5).astype(int), 0, n - 1) for p, n in zip(positions, array.shape, strict=True)]
    return array[np.ix_(*indices)]


def _linear(array: np.ndarray, positions: list[np.ndarray], factors: list[float]) -> np.ndarray:
    """One sparse matrix (smoothing and interpolation in one) per axis; three turns of the axes restore their order."""
    for position, factor in zip(positions, factors, strict=True):
        num, *rest = array.shape
        weights = _interpolation(position, num)
        if factor > 1:
            weights = weights @ _gaussian((factor - 1) / 2, num)
        array = (weights.astype(np.float32) @ array.reshape(num, -1)).reshape(-1, *rest)
        array = np.ascontiguousarray(np.moveaxis(array, 0, -1))
    return array


def _scanned_mean(x: Volume, positions: list[np.ndarray], factors: list[float], padding: np.ndarray) -> np.ndarray:
    """The weighted mean of what was scanned; the outside value in `padding`."""
    scanned = (~x.padding).astype(np.float32)  # type: ignore[operator]  # it has some
    total = _linear(x.array * scanned, positions, factors)
    weight = _linear(scanned, positions, factors)
    return np.divide(total, weight, out=np.full_like(total, x.outside), where=~padding)


def _interpolation(position: np.ndarray, num: int) -> sparse.csr_matrix:
    low = np.floor(position).astype(int)
    rows = np.arange(len(position))
    return _matrix([(rows, low, 1 - (position - low)), (rows, low + 1, position - low)], len(position), num)


def _gaussian(sigma: float, num: int) -> sparse.csr_matrix:
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    weights /= weights.sum()
    rows = np.arange(num)
    return _matrix([(rows, rows + o, np.full(num, w)) for o, w in zip(offsets, weights, strict=True)], num, num)


def _matrix(entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]], num_rows: int, num: int) -> sparse.csr_matrix:
    """The matrix of (rows, columns, weights); columns beyond an end repeat the voxel there."""
    rows, columns, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = sparse.csr_matrix((weights, (rows, np.clip(columns, 0, num - 1))), shape=(num_rows, num))
    matrix.eliminate_zeros()
    return matrix


def _filled(array: np.ndarray, positions: list[np.ndarray], x: Volume | LabelMap) -> np.ndarray:
    """The array with the outside value where a position lies outside the field of view."""
    for axis, position in enumerate(positions):
        beyond = (position < -0.5) | (position > x.grid.shape[axis] - 0.5)
        np.moveaxis(array, axis, 0)[beyond] = x.outside
    return array
