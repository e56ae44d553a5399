"""Tests of equivalence: against statsmodels' definition by hand, and what few values say."""

import numpy as np
import pytest
from scipy import stats

from maisi.evaluation.equivalence import paired_equivalence, unpaired_equivalence


def test_both_one_sided_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.80, 0.03, 12), rng.normal(0.81, 0.05, 9)
    found = unpaired_equivalence(a, b, 0.05)
    upper = stats.ttest_ind(b, a + 0.05, equal_var=False, alternative="less").pvalue
    lower = stats.ttest_ind(b, a - 0.05, equal_var=False, alternative="greater").pvalue
    assert found.p == pytest.approx(max(upper, lower))
    low, high = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    differences = b - a[:9]
    paired = paired_equivalence(differences, 0.05)
    assert paired.p == pytest.approx(
        max(
            stats.ttest_1samp(differences, 0.05, alternative="less").pvalue,
            stats.ttest_1samp(differences, -0.05, alternative="greater").pvalue,
        )
    )


def test_alike_apart_and_undecided_are_three_verdicts() -> None:
    spread = np.array([-0.01, 0.0, 0.01, -0.005, 0.005])
    assert paired_equivalence(spread, 0.05).verdict == "equivalent"
    assert paired_equivalence(spread - 0.2, 0.05).verdict == "not equivalent"
    assert paired_equivalence(20 * spread, 0.05).verdict == "too few to say"
    assert paired_equivalence([0.0, 0.0], 0.05).verdict == "too few to say"
    assert unpaired_equivalence([0.5] * 9, [0.5] * 2, 0.05).verdict == "too few to say"


def test_values_without_spread_decide_by_themselves() -> None:
    assert unpaired_equivalence([1.0] * 3, [1.0] * 3, 0.05).verdict == "equivalent"
    assert unpaired_equivalence([1.0] * 3, [0.5] * 3, 0.05).verdict == "not equivalent"
