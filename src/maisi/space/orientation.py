"""Arrays as files hold them, turned to RAS."""

import numpy as np

from maisi.space.grid import Grid
from maisi.space.tilt import nearest_axes, straighten
from maisi.space.volume import OUTSIDE, Modality, Volume


def turn_volume(array: np.ndarray, grid: Grid, modality: Modality, padding: np.ndarray | None = None) -> Volume:
    """The volume along RAS, see `turn_to_ras`; nothing is interpolated between what was scanned and `padding`."""
    outside = OUTSIDE[modality]
    if padding is None or not padding.any():
        return Volume(*turn_to_ras(array, grid, outside, nearest=False), modality)
    turned, upright = turn_to_ras(padding, grid, 1, nearest=True)
    scanned = (~padding).astype(np.float32)
    total, _ = turn_to_ras(array * scanned, grid, 0, nearest=False)
    weight, _ = turn_to_ras(scanned, grid, 0, nearest=False)
    mean = np.divide(total, weight, out=np.full_like(total, outside), where=~turned)
    return Volume(mean, upright, modality, turned)


def turn_to_ras(array: np.ndarray, grid: Grid, outside: float, *, nearest: bool) -> tuple[np.ndarray, Grid]:
    """The array along RAS, and its grid.

    Axes that run along the world's, in any order and direction, are permuted and flipped: every value and every world
    position is kept. Axes that lean by less than a tenth of a voxel over the whole volume are taken as straight. An
    oblique or tilted array is interpolated (linearly, or `nearest` for ids) onto the nearest RAS grid: the spacing of
    the axes nearest to right, anterior and superior (of a tilted stack the distance of its planes), and the smallest
    size that covers the whole field of view, with `outside` around it, see `tilt.straighten`.
    """
    array, grid = _permuted(array, grid)
    if grid.is_ras:
        return array, grid
    straight = _straightened(grid)
    if straight.is_close(grid):
        return array, straight
    return straighten(array, grid, outside, nearest=nearest)


def is_straight(grid: Grid) -> bool:
    """Whether `turn_to_ras` permutes and flips axes only, and moves no value by interpolation."""
    _, turned = _permuted(np.empty(grid.shape, np.bool_), grid)
    return turned.is_ras or _straightened(turned).is_close(turned)


def ras_view(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A view of a straight array along RAS: what is written to it is written to the array."""
    order = nearest_axes(grid)
    flips = tuple(slice(None, None, -1 if grid.affine[world, axis] < 0 else 1) for world, axis in enumerate(order))
    return array.transpose(order)[flips]


def _permuted(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """The axes in the order and direction nearest to RAS; exact."""
    order = nearest_axes(grid)
    array = array.transpose(order)
    affine = grid.affine[:, [*order, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine += 0.0  # -0.0 to 0.0
    return np.ascontiguousarray(array), Grid(_size(array), affine)


def _straightened(grid: Grid) -> Grid:
    """The RAS grid of the same size, spacing and centre."""
    center = grid.world((np.array(grid.shape) - 1) / 2)
    origin = center - np.array(grid.spacing) * (np.array(grid.shape) - 1) / 2
    return Grid.axis_aligned(grid.shape, grid.spacing, origin)


def _size(array: np.ndarray) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z
