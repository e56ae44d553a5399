"""How well two label maps agree, structure by structure: Dice, surface Dice, and the 95th percentile of distances.

Definitions as in DeepMind's `surface-distance` and MONAI: the surface of a mask is its voxels with a face-neighbour
outside of it (Nikolov et al., arXiv 1809.04430), counted by voxels, not by area.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from scipy import ndimage

from maisi.anatomy.segmented import known_masks
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.shapes import Frozen, Spacing3
from maisi.space.volume import LabelMap

PERCENTILE = 95.0
RESAMPLES = 2000


class Agreement(Frozen):
    """How a structure of a map agrees with the reference; without any surface the distances say nothing."""

    reference_ml: float
    found_ml: float
    dice: float | None  # None where neither has the structure
    surface_dice: float | None = None
    hd95_mm: float | None = None


class Interval(Frozen):
    """A mean over cases and the interval in which it would lie, had other cases been drawn."""

    mean: float
    low: float
    high: float
    cases: int = Field(ge=1)


def agreement(
    reference: LabelMap, found: LabelMap, structures: Mapping[str, Sequence[int]], tolerance_mm: float = 2.0
) -> dict[str, Agreement]:
    """How two label maps of one grid agree on each structure, which is one id or several together.

    Surfaces count as agreeing where they lie within the tolerance. Raises `InvalidLabelsError` for maps on different
    grids, `InvalidRequestError` for a tolerance below zero.
    """
    _check_one_grid(reference, found)
    if tolerance_mm < 0:
        raise InvalidRequestError(f"tolerance {tolerance_mm} mm is below zero")
    masks = {
        name: (np.isin(reference.array, list(ids)), np.isin(found.array, list(ids))) for name, ids in structures.items()
    }
    return {name: _of_masks(a, b, reference.grid.spacing, tolerance_mm) for name, (a, b) in masks.items()}


def known_agreement(
    reference: LabelMap, found: LabelMap, admissible: np.ndarray, names: Sequence[str], tolerance_mm: float = 2.0
) -> dict[str, Agreement]:
    """How the channels that a segmenter found agree with a map of some structures, for the classes that the map has.

    `admissible` says which classes an id of the map may stand for, see `anatomy.segmented`; voxels of which it is not
    known whether they are of a class do not count.
    """
    _check_one_grid(reference, found)
    result = {}
    for channel, name in enumerate(names, start=1):
        truth, told = known_masks(found.array, reference.array, admissible, channel)
        if truth.any():
            result[name] = _of_masks(truth, told, reference.grid.spacing, tolerance_mm)
    return result


def _check_one_grid(reference: LabelMap, found: LabelMap) -> None:
    if not found.grid.is_close(reference.grid):
        raise InvalidLabelsError(f"label maps on different grids cannot be compared: {reference.grid} and {found.grid}")


def _of_masks(reference: np.ndarray, found: np.ndarray, spacing: Spacing3, tolerance_mm: float) -> Agreement:
    distances = surface_distances(reference, found, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000
    return Agreement(
        reference_ml=int(reference.sum()) * voxel_ml,
        found_ml=int(found.sum()) * voxel_ml,
        dice=dice(reference, found),
        surface_dice=None if distances is None else _surface_dice(*distances, tolerance_mm),
        hd95_mm=None if distances is None else _hd95(*distances),
    )


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """2 |a and b| / (|a| + |b|) of two masks (Dice, 1945); None where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return None if total == 0 else 2 * int((a & b).sum()) / total


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Spacing3) -> tuple[np.ndarray, np.ndarray] | None:
    """Distances (mm) of the surface of `a` from that of `b`, and the other way round; None where a mask is empty."""
    if not a.any() or not b.any():
        return None
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    surfaces = [_surface(np.pad(mask[box], 1)) for mask in (a, b)]
    first, second = (ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces)
    return second[surfaces[0]], first[surfaces[1]]


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _surface_dice(a_to_b: np.ndarray, b_to_a: np.ndarray, tolerance_mm: float) -> float:
    near = int((a_to_b <= tolerance_mm).sum()) + int((b_to_a <= tolerance_mm).sum())
    return near / (len(a_to_b) + len(b_to_a))


def _hd95(a_to_b: np.ndarray, b_to_a: np.ndarray) -> float:
    return float(max(np.percentile(a_to_b, PERCENTILE), np.percentile(b_to_a, PERCENTILE)))


def interval(values: Sequence[float], rng: np.random.Generator, share: float = 0.95) -> Interval:
    """The mean of a value over cases, with its bootstrap interval by percentiles (Efron, 1979).

    Of one case the interval is a point: nothing is known then. Raises `InvalidRequestError` without any case.
    """
    if not len(values):
        raise InvalidRequestError("no case to take the mean of")
    array = np.asarray(values, np.float64)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2]).tolist()
    return Interval(mean=float(array.mean()), low=low, high=high, cases=len(array))


def of_patients(patients: Sequence[str], values: Sequence[float]) -> list[float]:
    """A value for each patient: the mean of theirs, in the order in which patients come first."""
    found: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        found.setdefault(patient, []).append(value)
    return [float(np.mean(each)) for each in found.values()]


def dice_intervals(cases: Sequence[Mapping[str, Agreement]], rng: np.random.Generator) -> dict[str, Interval]:
    """The Dice of each structure over the cases whose reference has it; one that no reference has is left out."""
    names = dict.fromkeys(name for case in cases for name in case)
    result = {}
    for name in names:
        values = [case[name].dice for case in cases if name in case and case[name].reference_ml > 0]
        told = [value for value in values if value is not None]
        if told:
            result[name] = interval(told, rng)
    return result
