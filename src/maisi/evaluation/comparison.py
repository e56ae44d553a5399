"""Two sets of volumes of which any part, or any resampling, can be compared: all that intervals need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from maisi.evaluation.distances import KernelSums, frechet_of, spread
from maisi.evaluation.features import PLANES
from maisi.evaluation.stored import StoredPlanes

MOST_PLANES = 1500  # of each set and orientation, that precision and recall look at
NEIGHBOURS = 3

Side = Literal["precision", "recall"]


class Comparison:
    """Distances of two sets; weights say how often each volume of a set counts, in whole numbers."""

    def __init__(self, a: StoredPlanes, b: StoredPlanes, rng: np.random.Generator) -> None:
        self._orientations = {name: (a.orientation(name), b.orientation(name)) for name in PLANES}
        self._kernels = {name: KernelSums.of(*pair) for name, pair in self._orientations.items()}
        self._manifolds = {name: Manifolds.of(*pair, rng) for name, pair in self._orientations.items()}
        self.everything = np.ones(len(a), int), np.ones(len(b), int)

    def frechet(self, *weights: np.ndarray) -> dict[str, float]:
        """The Frechet distance of each orientation, and their mean as `mean`."""
        found = {
            name: frechet_of(*(spread(parts, w) for parts, w in zip(pair, weights, strict=True)))
            for name, pair in self._orientations.items()
        }
        return {**found, "mean": float(np.mean(list(found.values())))}

    def kernel(self, *weights: np.ndarray) -> float:
        """The kernel distance, mean of the orientations."""
        return float(np.mean([sums.distance(*weights) for sums in self._kernels.values()]))

    def hits(self, side: Side, *weights: np.ndarray) -> "Hits":
        """Which planes of a set lie within the manifold of the other one, of the volumes that count.

        Precision asks this of planes of the second set, recall of those of the first.
        """
        return Hits(tuple(each.hits(side, *weights) for each in self._manifolds.values()))


@dataclass(frozen=True)
class Hits:
    """For each orientation the volume of every plane, and whether the plane lies within the other manifold."""

    planes: tuple[tuple[np.ndarray, np.ndarray], ...]

    def share(self, weights: np.ndarray) -> float:
        """The share of the planes that do, mean of the orientations; nan where no volume counts."""
        shares = [float((weights[of] * inside).sum() / max(1, weights[of].sum())) for of, inside in self.planes]
        return float(np.mean(shares))


@dataclass(frozen=True)
class Manifolds:
    """Squared distances among some planes of two sets, and the volumes that these planes are of.

    A manifold is the union of balls to the third neighbour (Kynkaanniemi et al., arXiv 1904.06991).
    """

    volumes: tuple[np.ndarray, np.ndarray]
    within: tuple[np.ndarray, np.ndarray]
    between: np.ndarray

    @classmethod
    def of(cls, a: Sequence[np.ndarray], b: Sequence[np.ndarray], rng: np.random.Generator) -> "Manifolds":
        """Those of at most `MOST_PLANES` planes of each set, drawn at random."""
        (first, own), (second, others) = (_some(parts, rng) for parts in (a, b))
        return cls((own, others), (_squared(first, first), _squared(second, second)), _squared(first, second))

    def hits(self, side: Side, *weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The volume of each plane asked about, and whether it lies within the other set's manifold."""
        chosen = [np.flatnonzero(w[of]) for w, of in zip(weights, self.volumes, strict=True)]
        manifold, points = (0, 1) if side == "precision" else (1, 0)
        apart = self.between if side == "recall" else self.between.T  # (points, manifold)
        inner = self.within[manifold][np.ix_(chosen[manifold], chosen[manifold])]
        radius = np.partition(inner, min(NEIGHBOURS, len(inner) - 1), axis=1)[:, min(NEIGHBOURS, len(inner) - 1)]
        near = apart[np.ix_(chosen[points], chosen[manifold])] <= radius[None]
        return self.volumes[points][chosen[points]], np.asarray(near.any(1))


def _some(parts: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_PLANES` planes (n, d) of volumes, and the volume of each."""
    counts = [len(part) for part in parts]
    of = np.repeat(np.arange(len(counts)), counts)
    kept = np.sort(rng.permutation(len(of))[:MOST_PLANES])
    starts = np.cumsum([0, *counts])
    rows = [parts[k][kept[of[kept] == k] - starts[k]] for k in range(len(counts))]
    return np.concatenate(rows), of[kept]


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T, 0))
