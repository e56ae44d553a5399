"""Voxels that were not scanned: what a scanner or a tool wrote around the circle in which it measured."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maisi.space.hounsfield import AIR, BELOW_AIR, FAT_AND_LESS

_BEYOND_METAL = 20_000.0  # above 12-bit and extended scales; 63536 is -2000 read as unsigned
_SMALLEST_SHARE = 0.01  # of the voxels, from which one value that could be tissue is padding


@dataclass(frozen=True, eq=False)
class Padding:
    """Which voxels were not scanned, the value they hold most, and whether it could have been measured."""

    mask: np.ndarray  # bool [x y z]
    value: float
    is_doubtful: bool = False


def find_padding(array: np.ndarray) -> Padding | None:
    """The padding of finite HU `[x y z]`, or None.

    Padding is what is darker than any air (below -1200 HU), one value brighter than any metal that reaches the faces of
    the volume (63536), and one value that is no air in all eight corners, as far as it reaches from there, where air or
    fat is elsewhere.
    """
    low, high = float(array.min()), float(array.max())
    if low < BELOW_AIR:
        return _below_air(array)
    if high >= _BEYOND_METAL:
        return _beyond_metal(array)
    corners = array[:: max(1, array.shape[0] - 1), :: max(1, array.shape[1] - 1), :: max(1, array.shape[2] - 1)].ravel()
    value = float(corners[0])
    if (corners != value).any() or AIR.low <= value < AIR.high or value == low:
        return None
    mask = array == value
    is_scan = np.count_nonzero(array < FAT_AND_LESS) >= 0.02 * np.count_nonzero(~mask)
    if mask.mean() < _SMALLEST_SHARE or not is_scan:
        return None
    return Padding(_from_corners(mask), value, is_doubtful=True)


def _beyond_metal(array: np.ndarray) -> Padding | None:
    """What is brighter than metal where it is one value and lies on the faces of the volume in most planes."""
    mask = array >= _BEYOND_METAL
    values, counts = np.unique(array[mask], return_counts=True)
    if counts.max() < 0.9 * counts.sum() or counts.sum() < _SMALLEST_SHARE * array.size:
        return None
    faces = [np.moveaxis(mask, axis, 0)[[0, -1]].mean() for axis in range(3)]
    return Padding(mask, float(values[counts.argmax()])) if max(faces) > 0.05 else None


def _below_air(array: np.ndarray) -> Padding | None:
    """What is darker than air where it is one value, with what was interpolated beside it, or a few voxels."""
    mask = array < BELOW_AIR
    values, counts = np.unique(array[mask], return_counts=True)
    share = counts.max() / counts.sum()
    if share < 0.5 and counts.sum() > _SMALLEST_SHARE * array.size:
        return None  # spread as measured values are: HU on another scale
    return Padding(mask, float(values[counts.argmax()]))


def _from_corners(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that hangs together with a corner of the volume."""
    parts, _ = ndimage.label(mask)
    x, y, z = (max(1, n - 1) for n in mask.shape)
    reached = np.unique(parts[::x, ::y, ::z])
    return np.isin(parts, reached[reached > 0])
