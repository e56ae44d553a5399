"""Whether two means are alike enough: two one-sided tests (Schuirmann, 1987), which `no difference found` is not."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import stats

from maisi.shapes import Frozen

LEVEL = 0.05
LEAST = 3
"""Of fewer differences (or values of either set) no spread is estimated."""

Verdict = Literal["equivalent", "not equivalent", "too few to say", "not found"]


class Equivalence(Frozen):
    """Second mean less first, its 90 % interval, and what the two tests against plus and minus a margin say.

    `equivalent` where the interval lies within the margin, `not equivalent` where it lies outside, else too few to say;
    `not found` where both sets have hardly anything to compare.
    """

    verdict: Verdict
    paired: bool
    margin: float = Field(gt=0)
    numbers: tuple[int, ...]  # of differences, or of the values of each set
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None  # the larger one of the two tests


def paired_equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Of differences of pairs, by Student's t."""
    values = np.asarray(differences, np.float64)
    if len(values) < LEAST:
        return Equivalence(verdict="too few to say", paired=True, margin=margin, numbers=(len(values),))
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return _decided(float(values.mean()), error, len(values) - 1, margin, True, (len(values),))


def unpaired_equivalence(first: Sequence[float], second: Sequence[float], margin: float) -> Equivalence:
    """Of two sets of values, by Welch's t, whose spreads may differ."""
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    numbers = (len(a), len(b))
    if min(numbers) < LEAST:
        return Equivalence(verdict="too few to say", paired=False, margin=margin, numbers=numbers)
    parts = [float(values.var(ddof=1) / len(values)) for values in (a, b)]
    error, total = float(np.sqrt(sum(parts))), sum(parts)
    weights = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = total**2 / weights if weights > 0 else min(numbers) - 1
    return _decided(float(b.mean() - a.mean()), error, freedom, margin, False, numbers)


def _decided(
    mean: float, error: float, freedom: float, margin: float, paired: bool, numbers: tuple[int, ...]
) -> Equivalence:
    reach = error * float(stats.t.ppf(1 - LEVEL, freedom))
    if error > 0:
        p = float(max(stats.t.sf((mean + margin) / error, freedom), stats.t.cdf((mean - margin) / error, freedom)))
    else:
        p = 0.0 if abs(mean) < margin else 1.0
    verdict: Verdict = "too few to say"
    if p < LEVEL:
        verdict = "equivalent"
    elif abs(mean) - reach > margin or (error == 0 and p == 1.0):
        verdict = "not equivalent"
    return Equivalence(
        verdict=verdict,
        paired=paired,
        margin=margin,
        numbers=numbers,
        difference=mean,
        low=mean - reach,
        high=mean + reach,
        p=p,
    )
