"""How far a label map is from another: one less the mean Dice of its structures, after the other was laid over it.

Two maps of one person that were moved or stretched as a whole are near: before anything is compared, shift and scale of
each axis are taken out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maisi.anatomy.places import Footprint, footprints
from maisi.anatomy.variation import variation_rules
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap

LEAST_MIDDLES, LEAST_SPREAD_MM = 4, 20.0  # structures whose middles tell a scale
SCALES = (0.7, 1.4)
OUTLIER_MM, ROUNDS = 10.0, 4  # a middle that is further off than this, and twice the usual, is of a fragment


@dataclass(frozen=True, eq=False)
class Likeness:
    """A label map as it is compared: on coarse voxels, with the footprints of its structures."""

    labels: LabelMap
    found: Mapping[int, Footprint]

    @classmethod
    def of(cls, labels: LabelMap) -> "Likeness":
        """What tells a label map from others; filling tissues (body, fat, coarse bone and air) do not count."""
        vocabulary = load_vocabulary()
        small = resample(labels, with_spacing(labels.grid, (variation_rules().compare_mm,) * 3))
        fillings = vocabulary.group("tissues")
        return cls(small, {id: each for id, each in footprints(small).items() if id not in fillings})

    def least_distance(self, volumes: Mapping[int, float]) -> float:
        """The least distance that the volumes (ml, by id) of another map allow; structures that are cut do not tell."""
        whole = {id: each.ml for id, each in self.found.items() if not any(each.is_cut)}
        return 1 - most_dice(whole or {id: each.ml for id, each in self.found.items()}, volumes)

    def distance(self, other: "Likeness") -> float:
        """One less the mean Dice over the structures of this map, 0 to 1; 0 where the other shows the very same.

        What the other lacks counts as a Dice of 0. Of the ways to lay it over, the one that makes it nearest counts.
        """
        shared = sorted(self.found.keys() & other.found.keys())
        whole = [id for id in shared if not any((*self.found[id].is_cut, *other.found[id].is_cut))]
        return min((self._distance_over(other, ids) for ids in (whole, shared) if ids), default=1.0)

    def _distance_over(self, other: "Likeness", ids: Sequence[int]) -> float:
        """The distance where the middles of the structures `ids` of both lie over each other."""
        mine, theirs = (np.array([each.found[id].middle for id in ids]) for each in (self, other))
        scale, shift = _laid_over(mine, theirs)
        grid = self.labels.grid
        laid = Grid.axis_aligned(
            grid.shape, (scale * grid.spacing).tolist(), (scale * np.array(grid.origin) + shift).tolist()
        )
        return 1 - mean_dice(self.labels.array, resample(other.labels, laid).array, self.found)


def _laid_over(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift (3,) of each axis that take middles (n, 3) to others, whatever a few of them say."""
    good, scale = np.ones(len(mine), bool), np.ones(3)
    shift = np.median(theirs - mine, axis=0)
    for _ in range(ROUNDS):
        apart = np.abs(scale * mine + shift - theirs).max(axis=1)
        good = apart <= max(OUTLIER_MM, 2 * float(np.median(apart)))
        x, y = mine[good], theirs[good]
        spread = x.std(axis=0)
        slope = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0) / np.maximum(spread, 1e-6) ** 2
        tells = (spread > LEAST_SPREAD_MM) & (len(x) >= LEAST_MIDDLES)
        scale = np.where(tells, np.clip(slope, *SCALES), 1.0)
        shift = (y - scale * x).mean(axis=0)
    return scale, shift


def mean_dice(one: np.ndarray, other: np.ndarray, ids: Iterable[int]) -> float:
    """The mean Dice of the structures `ids`; what has next to no voxel in either is left out."""
    both = np.bincount(one[one == other], minlength=256)
    sizes = np.bincount(one.ravel(), minlength=256) + np.bincount(other.ravel(), minlength=256)
    dice = [2 * both[id] / sizes[id] for id in ids if sizes[id] >= variation_rules().least_voxels]
    return float(np.mean(dice)) if dice else 0.0


def most_dice(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """The largest mean Dice that volumes (by id) allow two maps, both bodies scaled to one size."""
    shared = mine.keys() & theirs.keys()
    if not shared:
        return 0.0
    ratio = sum(theirs[id] for id in shared) / sum(mine[id] for id in shared)
    dice = [2 * min(ratio * mine[id], theirs[id]) / (ratio * mine[id] + theirs[id]) for id in shared]
    return float(sum(dice) / len(mine))
