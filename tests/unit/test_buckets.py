"""Batches of one shape: which cases make them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maisi.data.buckets import Buckets
from maisi.errors import InvalidRequestError

EXTENTS = [(8, 8, 8), (8, 8, 8), (9, 8, 10), (16, 8, 8), (12, 12, 12), (16, 8, 8), (8, 8, 8)]
SIZES = st.sampled_from([(), ((8, 8, 8),), ((4, 8, 8), (16, 8, 12))])


@given(st.integers(0, 5), st.integers(0, 1000), st.integers(1, 5), SIZES)
def test_a_batch_has_one_shape_that_all_its_cases_give(seed: int, number: int, count: int, sizes: tuple) -> None:
    buckets = Buckets(EXTENTS, multiple=4)
    shape, chosen = buckets.chosen(seed, number, count, sizes)
    assert len(chosen) == count
    assert any({buckets.shape(case, size) for case in chosen} == {shape} for size in sizes or (None,))
    assert all(n % 4 == 0 and n > 0 for n in shape)
    assert (shape, chosen) == Buckets(EXTENTS, multiple=4).chosen(seed, number, count, sizes)


@pytest.mark.parametrize("count", [1, 3])
def test_every_case_leads_once_in_a_round(count: int) -> None:
    buckets = Buckets(EXTENTS, multiple=4)
    for around in range(3):
        leaders = [buckets.chosen(0, around * 7 + i, count)[1][0] for i in range(7)]
        assert sorted(leaders) == list(range(7))


def test_another_round_has_another_order() -> None:
    buckets = Buckets([(8, 8, 8)] * 20)
    first, second = ([buckets.chosen(0, around * 20 + i, 1)[1][0] for i in range(20)] for around in range(2))
    assert first != second


def test_cases_are_repeated_only_where_their_shape_has_too_few() -> None:
    buckets = Buckets(EXTENTS, multiple=4)
    for number in range(21):
        shape, chosen = buckets.chosen(1, number, 3)
        assert len(set(chosen)) == {(8, 8, 8): 3, (16, 8, 8): 2, (12, 12, 12): 1}[shape]


def test_shares_say_how_often_a_case_is_drawn() -> None:
    shares = np.array([0.5, 0.1, 0.0, 0.2, 0.0, 0.2, 0.0])
    buckets = Buckets(EXTENTS, shares, multiple=4)
    counts = Counter(case for number in range(400) for case in buckets.chosen(0, number, 1)[1])
    assert set(counts) == {0, 1, 3, 5}
    assert counts[0] == pytest.approx(200, abs=50)  # five standard deviations
    assert set(Counter(case for number in range(50) for case in buckets.chosen(0, number, 4)[1])) == {0, 1, 3, 5}


def test_a_case_that_is_too_small_is_refused_unless_it_is_never_drawn() -> None:
    with pytest.raises(InvalidRequestError, match=r"at least 4 voxels on every axis; found one of \(8, 3, 8\)"):
        Buckets([(8, 8, 8), (8, 3, 8)], multiple=4)
    Buckets([(8, 8, 8), (8, 3, 8)], np.array([1.0, 0.0]), multiple=4)
    with pytest.raises(InvalidRequestError, match="found none"):
        Buckets([])
