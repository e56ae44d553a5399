"""Distances between two sets of features: Frechet and kernel distance."""

from collections.abc import Callable, Sequence

import numpy as np

from maisi.errors import InvalidRequestError

Planes = Sequence[dict[str, np.ndarray]]
"""Features of the planes of every volume, by orientation."""

Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of Gaussians with the means and covariances of features (n, d) and (m, d).

    |mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson and Landau, 1982; Heusel et al., 2017). Raises
    `InvalidRequestError` for fewer than two features in a set.
    """
    _check(a, b)
    mean, first, second = a.mean(0) - b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    root = _root(first)
    cross = np.linalg.eigvalsh(root @ second @ root)
    distance = mean @ mean + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(distance, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al., 2018: KID)."""
    _check(a, b)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(within[0] + within[1] - 2 * kernel(a, b).mean())


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
