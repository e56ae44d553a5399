"""The HU of a generated CT brought to those of the case that its labels come from, structure by structure."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from maisi.space.volume import LabelMap, Volume, id_counts

LEAST_VOXELS = 30
"""A structure with a smaller core is left as it is."""

LEAST_GAIN = 0.4
"""Spread within a structure is never made smaller than by this factor, and never larger."""

SIGMA_VOXELS = 0.7
"""By which what is changed goes over from one structure to the next."""


@dataclass(frozen=True)
class Level:
    """The median of a structure's core, HU, and its spread (the standard deviation, told by quartiles)."""

    median: float
    spread: float


def levelled(volume: Volume, labels: LabelMap, reference: Volume, reference_labels: LabelMap) -> Volume:
    """The volume with each structure at the median of the reference, and with no more spread than there.

    A generator that was trained on few volumes gets outlines right before it gets HU right, and a network that learns
    from both sees where a CT is from instead of what it shows. What is background stays as it is.
    """
    ids = [int(id) for id in np.flatnonzero(id_counts(labels.array)) if id > 0]
    maps = np.zeros((3, *labels.grid.shape), np.float32)  # shift, gain less 1, middle
    for id in ids:
        own, wanted = level_of(volume, labels, id), level_of(reference, reference_labels, id)
        if own is not None and wanted is not None:
            gain = float(np.clip(wanted.spread / max(own.spread, 1.0), LEAST_GAIN, 1.0))
            maps[:, labels.array == id] = np.array([wanted.median - own.median, gain - 1, own.median])[:, None]
    shift, gain_less_1, middle = (ndimage.gaussian_filter(each, SIGMA_VOXELS) for each in maps)
    inside = labels.array > 0
    changed = volume.array + shift + gain_less_1 * (volume.array - middle)
    return replace(volume, array=np.where(inside, changed, volume.array))


def level_of(volume: Volume, labels: LabelMap, id: int) -> Level | None:
    """The level of a structure within its surface; None where next to nothing is left of it."""
    mask = labels.array == id
    core = ndimage.binary_erosion(mask)
    values = volume.array[core if core.sum() >= LEAST_VOXELS else mask]
    if values.size < LEAST_VOXELS:
        return None
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return Level(median, (high - low) / 1.349)
