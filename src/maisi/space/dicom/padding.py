"""Pixels outside the reconstruction circle, which hold no HU: declared by the file, or by their values alone."""

from typing import Any

import numpy as np
from scipy import ndimage

from maisi.space.reading import Finding
from maisi.space.volume import OUTSIDE

AIR = OUTSIDE["ct"]
BELOW_AIR = -1100.0  # HU; noise in air reaches down to here
_BEYOND_METAL = 32000.0  # HU; extended scales end near 30000
_COMMON = 1e-3  # of all voxels: fewer are streaks or metal
_STRAY = 1e-3  # of all voxels: more that are neither padding nor above air, and the scale is another than HU
_SPIKE = 0.1  # of the voxels below air: a value that so many share is padding
_SLICES = 0.5  # of the slices: a reconstruction circle is in all
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


def without_undeclared(array: np.ndarray) -> list[Finding]:
    """What was found of padding; HU that are padding by their value (-2000, -3024, 62512) become -1024, in place.

    Such a value is shared by many voxels and far from all that a CT holds.
    """
    findings = []
    for spikes in (_spikes(array, array < BELOW_AIR), _spikes(array, array > _BEYOND_METAL)):
        if spikes:
            mask = np.isin(array, spikes)
            count = int(np.count_nonzero(mask))
            values = ", ".join(f"{value:g}" for value in spikes)
            found = f"{count} voxels ({count / array.size:.1%}) of {values} HU, padding that the files do not declare"
            findings.append(Finding(topic="padding", found=found, decided=f"taken as air, {AIR:g} HU"))
            array[mask] = AIR
    return findings


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


def _spikes(array: np.ndarray, beyond: np.ndarray) -> list[float]:
    """The values that many voxels share among those beyond what a CT holds; none where these spread as HU would."""
    if np.count_nonzero(beyond) < _COMMON * array.size:
        return []
    values, counts = np.unique(array[beyond], return_counts=True)
    common = counts >= max(_SPIKE * counts.sum(), _COMMON * array.size)
    if beyond.any(axis=(0, 1)).mean() < _SLICES:
        return []
    return [] if counts[~common].sum() > _STRAY * array.size else values[common].tolist()
