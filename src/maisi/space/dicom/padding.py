"""Pixels outside the reconstruction circle, which hold no HU: as the file declares them."""

from typing import Any

import numpy as np
from scipy import ndimage

from maisi.space.volume import OUTSIDE

AIR = OUTSIDE["ct"]
BELOW_AIR = -1100.0  # HU; noise in air reaches down to here
_TISSUE = (-900.0, 3100.0)  # HU; a padding value in here may be that of real voxels too


def declared(dataset: Any, stored: np.ndarray, slope: float, intercept: float) -> np.ndarray | None:
    """Which stored pixels `[row column]` are padding by PixelPaddingValue and PixelPaddingRangeLimit.

    Values are taken as the pixels are, signed or unsigned, whatever their own representation. A padding value that is
    a tissue's HU too counts only where it is joined to the edge of the image. None where nothing is declared.
    """
    value = _as_stored(dataset.get("PixelPaddingValue"), stored)
    if value is None:
        return None
    limit = _as_stored(dataset.get("PixelPaddingRangeLimit"), stored)
    low, high = sorted((value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    hu = (low * slope + intercept, high * slope + intercept)
    if hu[1] < _TISSUE[0] or hu[0] > _TISSUE[1]:
        return mask
    return _joined_to_edge(mask)


def _as_stored(value: Any, stored: np.ndarray) -> int | None:
    """A padding value in the range of the stored type: 63536 of signed 16-bit pixels is -2000."""
    if value is None or value == "":
        return None
    bits = 8 * stored.dtype.itemsize
    wrapped = int(value) % (1 << bits)
    return wrapped - (1 << bits) if stored.dtype.kind == "i" and wrapped >= 1 << (bits - 1) else wrapped


def _joined_to_edge(mask: np.ndarray) -> np.ndarray:
    regions, _ = ndimage.label(mask)
    edges = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return np.isin(regions, np.unique(edges[edges > 0]))
