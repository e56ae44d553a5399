"""Axes that lean, against the world (an oblique scan) or against each other (a gantry tilt, a shear), made upright."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from maisi.space.grid import TOLERANCE_VOXELS, Grid

_RIGHT_ANGLE = 1e-3  # largest cosine between two axes that is rounding
_ROUNDING = 1e-6  # of a voxel: a centre on the very edge of the field of view is inside


@dataclass(frozen=True)
class Tilt:
    """How the planes of a stack shift sideways from one to the next, as they do under a tilted gantry."""

    axis: int  # the array axis that steps from plane to plane
    degrees: float  # between that step and the normal of the planes
    distance_mm: float  # of neighbouring planes, along the normal


def tilt_of(grid: Grid) -> Tilt | None:
    """The tilt of a grid, or None where its axes are at right angles to within a tenth of a voxel over the volume.

    The planes are those whose own two axes are at right angles. Where two axes could be the one that steps, it is the
    one nearest to the body's long axis: a gantry tilts about the line from right to left.
    """
    matrix = grid.affine[:3, :3]
    directions = matrix / grid.spacing
    cosines = np.abs(directions.T @ directions)[[1, 0, 0], [2, 2, 1]]  # of the two axes beside axis 0, 1 and 2
    upward = np.abs(directions[2])
    axis = min(range(3), key=lambda k: (max(cosines[k], _RIGHT_ANGLE), -upward[k]))
    normal = np.cross(directions[:, axis - 2], directions[:, axis - 1])
    distance = abs(float(matrix[:, axis] @ normal) / float(np.linalg.norm(normal)))
    sideways = float(np.sqrt(max(0.0, grid.spacing[axis] ** 2 - distance**2)))
    if sideways * (grid.shape[axis] - 1) <= TOLERANCE_VOXELS * min(grid.spacing):
        return None
    return Tilt(axis, float(np.degrees(np.arctan2(sideways, distance))), distance)


def straighten(array: np.ndarray, grid: Grid, outside: float, *, nearest: bool) -> tuple[np.ndarray, Grid]:
    """The array interpolated in one pass (linearly, or `nearest` for ids) onto the upright grid, and that grid.

    Each value stays at its world position. Where only planes shift sideways along the world's axes, the new planes are
    the old ones, shifted within themselves. What was not scanned is `outside`.
    """
    target = upright(grid)
    to_source = np.linalg.inv(grid.affine) @ target.affine
    to_source = np.round(to_source, 9)  # planes that coincide are copied, not mixed by rounding
    order = 0 if nearest else 1
    turned = ndimage.affine_transform(
        array, to_source[:3, :3], to_source[:3, 3], target.shape, order=order, mode="nearest"
    )
    turned[_beyond(to_source, grid, target)] = outside
    return turned, target


def upright(grid: Grid) -> Grid:
    """The smallest RAS grid around the whole field of view, with the same centre and the spacing of the same planes.

    The spacing of a tilted stack is the distance of its planes, not the length of the step between their corners.
    """
    spacing = np.array(grid.spacing)
    tilt = tilt_of(grid)
    if tilt is not None:
        spacing[tilt.axis] = tilt.distance_mm
    spacing = spacing[list(nearest_axes(grid))]
    half = np.abs(grid.affine[:3, :3]) @ (np.array(grid.shape) / 2)
    shape = np.ceil(2 * half / spacing - TOLERANCE_VOXELS).astype(int)
    center = grid.world((np.array(grid.shape) - 1) / 2)
    return Grid.axis_aligned(shape.tolist(), spacing.tolist(), (center - spacing * (shape - 1) / 2).tolist())


def nearest_axes(grid: Grid) -> tuple[int, ...]:
    """For right, anterior and superior, the array axis that runs nearest to it, each axis once."""
    cosines = np.abs(grid.affine[:3, :3] / grid.spacing)
    return max(permutations(range(3)), key=lambda order: cosines[range(3), order].prod())


def _beyond(to_source: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Which voxels of the target have their centre outside the source's field of view."""
    beyond = np.zeros(target.shape, bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    for axis, num in enumerate(source.shape):
        row = to_source[axis]
        position = row[0] * i + row[1] * j + row[2] * k + row[3]
        beyond |= (position < -0.5 - _ROUNDING) | (position > num - 0.5 + _ROUNDING)
    return beyond
