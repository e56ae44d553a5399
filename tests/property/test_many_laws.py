"""What holds for every request file and every sample of it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.pipelines.many.overlap import overlapped
from maisi.pipelines.many.requests import ManyRequest, draw_request, request_of
from maisi.storage.settings import check_settings

ENDS = st.tuples(st.floats(0.5, 99), st.floats(0.5, 99)).map(sorted)
NUMBERS = st.one_of(
    ENDS.map(lambda ends: {"uniform": ends}),
    ENDS.map(lambda ends: {"log_uniform": ends}),
    ENDS.map(lambda ends: {"normal": [50.0, 30.0], "within": ends}),
)
STEPS = st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda ends: {"whole": sorted(ends)})
SEEDS, INDICES = st.integers(0, 2**32), st.integers(0, 10**6)


def asked(seed: int, count: int, **drawn: Any) -> ManyRequest:
    return check_settings(ManyRequest, {"seed": seed, "count": count, **drawn})


@given(seed=SEEDS, index=INDICES, spacing=NUMBERS, steps=STEPS)
@settings(max_examples=40)
def test_a_drawn_number_lies_between_its_ends_and_makes_a_request(
    seed: int, index: int, spacing: dict, steps: dict
) -> None:
    request = request_of(draw_request(asked(seed, 1, spacing=spacing, steps=steps), index))
    low, high = spacing.get("within") or next(iter(spacing.values()))
    assert request.spacing is not None
    assert all(low <= each <= high for each in request.spacing)
    assert steps["whole"][0] <= request.steps <= steps["whole"][1]


@given(seed=SEEDS, index=INDICES, spacing=NUMBERS, other=NUMBERS, steps=STEPS, count=st.integers(1, 10**6))
@settings(max_examples=40)
def test_a_setting_depends_on_seed_index_and_its_own_distribution_alone(
    seed: int, index: int, spacing: dict, other: dict, steps: dict, count: int
) -> None:
    one = draw_request(asked(seed, 1, spacing=spacing, steps=steps), index).settings
    asked_for = asked(seed, count, steps=steps, spacing=other, region={"choice": ["head", "chest"]})
    two = draw_request(asked_for, index).settings
    assert (one["seed"], one["steps"]) == (two["seed"], two["steps"])


@given(items=st.lists(st.integers(), max_size=12), beside=st.booleans())
@settings(max_examples=30, deadline=None)
def test_stages_side_by_side_give_what_they_give_one_after_the_other(items: list[int], beside: bool) -> None:
    found = overlapped(items, lambda k: k + 1, lambda k: k * 3, lambda k: k - 2, beside=beside)
    assert list(found) == [(k + 1) * 3 - 2 for k in items]
