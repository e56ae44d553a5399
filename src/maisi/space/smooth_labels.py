"""A label map on a finer grid with rounded borders, where the nearest voxel would make steps."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from maisi.errors import InvalidGridError
from maisi.space.grid import Grid
from maisi.space.resample import resample
from maisi.space.volume import LabelMap

MARGIN = 1  # source voxels around a structure in which its share is above zero


def resample_smoothly(labels: LabelMap, grid: Grid) -> LabelMap:
    """The label map on `grid` (RAS): in each voxel the structure with the largest linearly interpolated share.

    Shares are computed a structure at a time, within its box. Outside of the field of view it is 0. A grid that is
    coarser on some axis takes the nearest voxel, as `resample` does.
    """
    if not grid.is_ras:
        raise InvalidGridError(f"can resample onto a grid along RAS only, got {grid}")
    if any(new >= old for new, old in zip(grid.spacing, labels.grid.spacing, strict=True)):
        return resample(labels, grid)
    positions = [_positions(labels.grid, grid, axis) for axis in range(3)]
    best = np.zeros(grid.shape, np.float32)
    ids = np.zeros(grid.shape, labels.array.dtype)
    background = _share(labels.array == 0, [slice(0, n) for n in labels.grid.shape], positions)
    for window, share in background:
        best[window] = share
    for id, box in enumerate(ndimage.find_objects(labels.array), start=1):
        if box is None:
            continue
        wide = [
            slice(max(0, s.start - MARGIN), min(n, s.stop + MARGIN))
            for s, n in zip(box, labels.grid.shape, strict=True)
        ]
        for window, share in _share(labels.array[tuple(wide)] == id, wide, positions):
            wins = share > best[window]
            best[window][wins] = share[wins]
            ids[window][wins] = id
    return replace(labels, array=ids, grid=grid)


def _positions(source: Grid, target: Grid, axis: int) -> np.ndarray:
    world = target.origin[axis] + np.arange(target.shape[axis]) * target.spacing[axis]
    return np.round((world - source.origin[axis]) / source.spacing[axis], 5)


def _share(
    mask: np.ndarray, box: list[slice], positions: list[np.ndarray]
) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """The window of the target that a box covers, and the share of the mask in it; none where it covers nothing."""
    window, share = [], mask.astype(np.float32)
    for axis, (part, at) in enumerate(zip(box, positions, strict=True)):
        inside = np.flatnonzero((at >= part.start - 0.5) & (at <= part.stop - 0.5))
        if not len(inside):
            return []
        window.append(slice(int(inside[0]), int(inside[-1]) + 1))
        share = _interpolated(share, at[window[-1]] - part.start, axis)
    return [(tuple(window), share)]


def _interpolated(share: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, ends repeated."""
    low = np.clip(np.floor(at).astype(int), 0, share.shape[axis] - 1)
    high = np.minimum(low + 1, share.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = len(at)
    part = np.clip(at - low, 0, 1).astype(np.float32).reshape(shape)
    return (1 - part) * share.take(low, axis) + part * share.take(high, axis)
