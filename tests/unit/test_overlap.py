"""Three stages side by side give what one after the other gives, and hold no more than three items."""

import threading
import time

import pytest

from maisi.pipelines.many.overlap import overlapped


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order_however_long_each_stage_takes(beside: bool, count: int) -> None:
    def slow(value: int) -> int:
        time.sleep(0.002 * (value % 3))
        return value + 1

    found = list(overlapped(range(count), slow, lambda value: value * 10, slow, beside=beside))
    assert found == [(k + 1) * 10 + 1 for k in range(count)]


def test_the_middle_stage_has_the_thread_that_asks_and_the_others_work_beside_it() -> None:
    seen: dict[str, set[int]] = {"before": set(), "during": set(), "after": set()}
    meeting = threading.Barrier(3, timeout=10)

    def stage(name: str) -> object:
        def work(k: int) -> int:
            seen[name].add(threading.get_ident())
            if {"before": 2, "during": 1, "after": 0}[name] == k:
                meeting.wait()  # all three at once, or this fails
            return k

        return work

    assert list(overlapped(range(4), stage("before"), stage("during"), stage("after"))) == [0, 1, 2, 3]
    assert seen["during"] == {threading.get_ident()}
    assert len(set.union(*seen.values())) == 3


def test_no_more_than_three_items_are_begun_and_not_done() -> None:
    lock, held, most = threading.Lock(), 0, 0

    def begin(k: int) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return k

    def end(k: int) -> int:
        nonlocal held
        time.sleep(0.003)
        with lock:
            held -= 1
        return k

    assert list(overlapped(range(12), begin, lambda k: k, end)) == list(range(12))
    assert held == 0
    assert most <= 4  # the third is begun while the first comes to its end


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_error_of_any_stage_is_raised_and_what_was_made_before_is_kept(where: int) -> None:
    kept: list[int] = []

    def fail(stage: int, k: int) -> int:
        if stage == where and k == 3:
            raise OSError("the disk is full")
        if stage == 2:
            kept.append(k)
        return k

    with pytest.raises(OSError, match="disk is full"):
        list(overlapped(range(9), *[lambda k, stage=stage: fail(stage, k) for stage in range(3)]))
    assert kept == [0, 1, 2]
