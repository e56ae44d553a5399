"""Arrays as files hold them, turned to RAS."""

from itertools import permutations

import numpy as np
from scipy import ndimage

from maisi.space.grid import TOLERANCE_VOXELS, Grid


def turn_to_ras(array: np.ndarray, grid: Grid, outside: float, *, nearest: bool) -> tuple[np.ndarray, Grid]:
    """The array along RAS, and its grid.

    Axes that run along the world's, in any order and direction, are permuted and flipped: every value and every world
    position is kept. Axes that lean by less than a tenth of a voxel over the whole volume are taken as straight. An
    oblique array is interpolated (linearly, or `nearest` for ids) onto the nearest RAS grid: the spacing of the axes
    nearest to right, anterior and superior, and the smallest size that covers the whole oblique field of view, with
    `outside` around it.
    """
    array, grid = _permuted(array, grid)
    if grid.is_ras:
        return array, grid
    straight = _straightened(grid)
    if straight.is_close(grid):
        return array, straight
    covering = _covering(grid)
    to_source = np.linalg.inv(grid.affine) @ covering.affine
    order = 0 if nearest else 1
    turned = ndimage.affine_transform(
        array, to_source[:3, :3], to_source[:3, 3], covering.shape, order=order, mode="nearest"
    )
    turned[_beyond(to_source, grid, covering)] = outside
    return turned, covering


def _permuted(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """The axes in the order and direction nearest to RAS; exact."""
    order = _nearest_axes(grid)
    array = array.transpose(order)
    affine = grid.affine[:, [*order, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine += 0.0  # -0.0 to 0.0
    return np.ascontiguousarray(array), Grid(_size(array), affine)


def _nearest_axes(grid: Grid) -> tuple[int, ...]:
    """For right, anterior and superior, the array axis that runs nearest to it, each axis once."""
    cosines = np.abs(grid.affine[:3, :3] / grid.spacing)
    return max(permutations(range(3)), key=lambda order: cosines[range(3), order].prod())


def _straightened(grid: Grid) -> Grid:
    """The RAS grid of the same size, spacing and centre."""
    center = grid.world((np.array(grid.shape) - 1) / 2)
    origin = center - np.array(grid.spacing) * (np.array(grid.shape) - 1) / 2
    return Grid.axis_aligned(grid.shape, grid.spacing, origin)


def _covering(grid: Grid) -> Grid:
    """The smallest RAS grid of the same spacing around the whole field of view, with the same centre."""
    half = np.abs(grid.affine[:3, :3]) @ (np.array(grid.shape) / 2)
    shape = np.ceil(2 * half / grid.spacing - TOLERANCE_VOXELS).astype(int)
    center = grid.world((np.array(grid.shape) - 1) / 2)
    return Grid.axis_aligned(shape.tolist(), grid.spacing, center - np.array(grid.spacing) * (shape - 1) / 2)


def _beyond(to_source: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Which voxels of the target have their centre outside the source's field of view."""
    beyond = np.zeros(target.shape, bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    for axis, num in enumerate(source.shape):
        row = to_source[axis]
        position = row[0] * i + row[1] * j + row[2] * k + row[3]
        beyond |= (position < -0.5) | (position > num - 0.5)
    return beyond


def _size(array: np.ndarray) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z
