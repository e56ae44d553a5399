"""Work on many items, spread over processes or a cluster: each item has its outcome, whatever becomes of the others."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from maisi.compute.across import Across
from maisi.errors import InvalidRequestError
from maisi.runs.spread import Outcome, spread


def halved(number: int) -> float:
    """Half of an even number; odd ones are refused, 7 ends the process."""
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 2:
        raise InvalidRequestError(f"{number} is odd")
    return number / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_its_outcome_and_a_refusal_stops_no_other(workers: int) -> None:
    found = sorted(spread(halved, [4, 3, 8], Across(workers=workers)), key=lambda outcome: outcome.place)
    assert found == [Outcome(0, 2.0), Outcome(1, error="3 is odd"), Outcome(2, 4.0)]


def test_the_end_of_a_process_is_the_outcome_of_the_item_that_it_worked_on() -> None:
    found = sorted(spread(halved, [2, 7, 4, 6], Across(workers=2)), key=lambda outcome: outcome.place)
    assert [outcome.result for outcome in found] == [1.0, None, 2.0, 3.0]
    assert found[1].error == "the process that worked on it ended by signal 9 (out of memory, or killed)"


def test_over_ray_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its processes find `halved`
    found = sorted(spread(halved, [4, 3, 7, 8], Across(ray="local")), key=lambda outcome: outcome.place)
    assert [outcome.result for outcome in found] == [2.0, None, None, 4.0]
    assert found[1].error == "3 is odd"
    assert found[2].error is not None
    assert "ended" in found[2].error


@given(st.integers(0, 60), st.integers(1, 12))
def test_parts_are_apart_together_all_and_of_like_size(num_items: int, num_parts: int) -> None:
    items = list(range(num_items))
    parts = [Across(shard=f"{k}/{num_parts}").own(items) for k in range(1, num_parts + 1)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("said", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_what_is_no_part_is_refused(said: str) -> None:
    with pytest.raises(ValidationError, match="accepted: I/N with I from 1 to N"):
        Across(shard=said)
