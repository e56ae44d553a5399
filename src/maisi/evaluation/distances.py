"""Distances between two sets of features: Frechet and kernel distance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maisi.errors import InvalidRequestError

Planes = Sequence[Mapping[str, np.ndarray]]
"""Features (n, d) of the planes of every volume, by orientation."""

Distance = Callable[[np.ndarray, np.ndarray], float]
MOST_ROWS = 2048  # that are looked at together


@dataclass(frozen=True)
class Spread:
    """The mean (d,) of features, and a factor (r, d) of their covariance, which is its square: factor^T factor."""

    mean: np.ndarray
    factor: np.ndarray


def spread(parts: Sequence[np.ndarray], weights: np.ndarray | None = None) -> Spread:
    """Mean and covariance in float64 of features that come in parts (n, d), which are never joined.

    A part may count several times, or not at all: `weights` are whole numbers. The factor grows by QR, which unlike
    sums of squares loses no digits. Raises `InvalidRequestError` for fewer than two features.
    """
    times = np.ones(len(parts), int) if weights is None else weights
    drawn = [k for k in range(len(parts)) if times[k]]
    counts = np.array([len(parts[k]) for k in drawn])
    total = int((counts * times[drawn]).sum())
    if total < 2:
        raise InvalidRequestError(f"a distance needs two sets of at least two features; got {total}")
    mean = sum(times[k] * parts[k].sum(0, dtype=np.float64) for k in drawn) / total
    factor, rows = np.zeros((0, len(mean))), []
    for k in drawn:
        rows.append((parts[k] - mean) * np.sqrt(times[k] / (total - 1)))
        if sum(map(len, rows)) > max(MOST_ROWS, len(mean)):
            factor, rows = _triangle([factor, *rows]), []
    return Spread(mean, _triangle([factor, *rows]))


def _triangle(rows: Sequence[np.ndarray]) -> np.ndarray:
    """A factor (r, d) of the same square as these rows (n, d), r at most d."""
    return np.asarray(np.linalg.qr(np.concatenate(rows), mode="r"))


def frechet_of(a: Spread, b: Spread) -> float:
    """The Frechet distance of two Gaussians (Dowson and Landau, 1982; Heusel et al., 2017).

    |mean difference|^2 + tr A + tr B - 2 tr (A B)^1/2, where the last trace is the sum of the singular values of the
    product of the factors.
    """
    apart = a.mean - b.mean
    shared = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    return float(max(apart @ apart + np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * shared, 0.0))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of Gaussians with the means and covariances of features (n, d) and (m, d).

    Raises `InvalidRequestError` for fewer than two features in a set.
    """
    _check(a, b)
    return frechet_of(spread([a]), spread([b]))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al., 2018: KID)."""
    _check(a, b)
    return KernelSums.of([a], [b]).distance(np.ones(1), np.ones(1))


@dataclass(frozen=True)
class KernelSums:
    """Sums of the kernel over the planes of pairs of volumes, of which the distance of any resampling is made."""

    within: tuple[np.ndarray, np.ndarray]  # (volumes, volumes) of each set
    selves: tuple[np.ndarray, np.ndarray]  # (volumes,): of planes with themselves
    between: np.ndarray
    counts: tuple[np.ndarray, np.ndarray]  # planes of each volume

    @classmethod
    def of(cls, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> "KernelSums":
        """The sums of two sets of volumes, block by block."""
        selves = tuple(np.array([_self_kernel(part).sum() for part in parts]) for parts in (a, b))
        counts = tuple(np.array([len(part) for part in parts]) for parts in (a, b))
        return cls((_blocks(a, a), _blocks(b, b)), selves, _blocks(a, b), counts)  # type: ignore[arg-type]

    def distance(self, *weights: np.ndarray) -> float:
        """The distance where each volume of both sets counts as often as its weight says."""
        totals = [float(w @ n) for w, n in zip(weights, self.counts, strict=True)]
        inner = [
            float(w @ sums @ w - w @ own) / (total * (total - 1))
            for w, sums, own, total in zip(weights, self.within, self.selves, totals, strict=True)
        ]
        return inner[0] + inner[1] - 2 * float(weights[0] @ self.between @ weights[1]) / (totals[0] * totals[1])


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _self_kernel(x: np.ndarray) -> np.ndarray:
    return np.asarray((np.square(x).mean(1) + 1) ** 3)


def _blocks(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Sums (volumes of a, volumes of b) of the kernel."""
    return np.concatenate(
        [
            np.concatenate(
                [
                    np.add.reduceat(np.add.reduceat(_kernel(x, y), starts, axis=0), others, axis=1)
                    for y, others in _runs(b)
                ],
                axis=1,
            )
            for x, starts in _runs(a)
        ]
    )


def _runs(parts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts joined up to `MOST_ROWS` rows, and where each begins."""
    rows: list[np.ndarray] = []
    for part in parts:
        if rows and sum(map(len, rows)) + len(part) > MOST_ROWS:
            yield _joined(rows)
            rows = []
        rows.append(part)
    if rows:
        yield _joined(rows)


def _joined(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(rows), np.cumsum([0, *(len(part) for part in rows[:-1])])


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InvalidRequestError(
            f"a distance needs two sets of at least two features of one length; got {a.shape} and {b.shape}"
        )


def standardised(reference: Planes, *others: Planes) -> tuple[Planes, ...]:
    """All sets with each feature divided by its standard deviation over the reference's planes of all orientations."""
    stacked = np.concatenate([planes for volume in reference for planes in volume.values()])
    mean, scale = stacked.mean(0), np.maximum(stacked.std(0), 1e-6)
    return tuple(
        [{k: (v - mean) / scale for k, v in volume.items()} for volume in each] for each in (reference, *others)
    )


def by_planes(a: Planes, b: Planes, distance: Distance = frechet) -> dict[str, float]:
    """The distance for each orientation, and their mean as `mean`."""
    found = {name: distance(*(np.concatenate([v[name] for v in each]) for each in (a, b))) for name in a[0]}
    return {**found, "mean": float(np.mean(list(found.values())))}
