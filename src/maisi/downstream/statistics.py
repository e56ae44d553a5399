"""Differences between trainings with and without synthetic data, by patients: intervals and p-values."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

RESAMPLES = 10_000
EXACT = 14
"""Up to so many patients all signs are tried."""


class Difference(Frozen):
    """A mean difference over patients, the 95 % interval of a paired bootstrap, and how often chance does as much."""

    mean: float
    low: float
    high: float
    p: float
    patients: int


def paired_difference(values: Sequence[float], rng: np.random.Generator) -> Difference:
    """Of one difference for each patient: bootstrap by percentiles (Efron, 1979), and the p-value of random signs.

    The p-value is two-sided: the share of all choices of signs (of 10,000 and the one observed, beyond 14 patients)
    whose mean is as far from 0. With n patients it is never below 2 / 2^n.
    """
    if not len(values):
        raise InvalidRequestError("no patient in common to compare")
    array = np.asarray(values, np.float64)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Difference(mean=float(array.mean()), low=low, high=high, p=_p(array, rng), patients=len(array))


def _p(array: np.ndarray, rng: np.random.Generator) -> float:
    if len(array) <= EXACT:
        signs = np.array(list(product((-1, 1), repeat=len(array))))
    else:
        signs = np.concatenate([rng.choice((-1, 1), (RESAMPLES, len(array))), np.ones((1, len(array)), int)])
    extreme = np.abs(signs @ array) >= abs(array.sum()) * (1 - 1e-12)
    return float(extreme.mean())
