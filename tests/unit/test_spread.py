"""Work on many items, spread over processes or a cluster: each item has its outcome, whatever becomes of the others."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from maisi.compute.across import Across
from maisi.errors import InvalidRequestError, RunError
from maisi.runs.ray_cluster import connected
from maisi.runs.spread import Outcome, spread


def halved(number: int) -> float:
    """Half of an even number; odd ones are refused, 7 ends the process."""
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 2:
        raise InvalidRequestError(f"{number} is odd")
    return number / 2


def too_large(number: int) -> float:
    """What asks for more memory than any machine has, where the number is 1."""
    if number == 1:
        np.empty((1 << 24, 1 << 24, 1 << 10), np.uint8)
    return float(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lack_of_memory_is_the_outcome_of_its_item(workers: int) -> None:
    found = sorted(spread(too_large, [0, 1, 2], Across(workers=workers)), key=lambda outcome: outcome.place)
    assert [outcome.result for outcome in found] == [0.0, None, 2.0]
    assert "not enough memory" in (found[1].error or "")


def left_running(folder: Path) -> None:
    """Tells who works on it, and goes on for long."""
    child = subprocess.Popen(["sleep", "600"])
    (folder / f"{os.getpid()}-{child.pid}").touch()
    time.sleep(600)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from maisi.compute.across import Across; "
        "from maisi.runs.spread import spread; from test_spread import left_running\n"
        "if __name__ == '__main__': list(spread(left_running, [Path(sys.argv[1])] * 2, Across(workers=2)))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    (tmp_path / "told").mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, script, tmp_path / "told"], env={**os.environ, "PYTHONPATH": path})
    while len(told := list((tmp_path / "told").iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for process in [int(part) for name in told for part in name.name.split("-")]:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process).wait(timeout=60)  # raises where it goes on


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
    with connected("local", 1):  # one cluster for both: starting one takes longest
        found = sorted(spread(halved, [4, 3, 7, 8], Across(ray="local")), key=lambda outcome: outcome.place)
        with pytest.raises(InvalidRequestError, match=r"no machine of the Ray cluster has the 1000 cores"):
            list(spread(halved, [4], Across(ray="local"), threads=1000))
    assert [outcome.result for outcome in found] == [2.0, None, None, 4.0]
    assert found[1].error == "3 is odd"
    assert found[2].error is not None
    assert "ended" in found[2].error


def test_ray_that_does_not_start_is_asked_again_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    asked = []

    def fail(**settings: object) -> None:
        asked.append(settings)
        raise RuntimeError("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RunError, match=r"cannot be started here, tried 3 times: The current node timed out"):
        list(spread(halved, [4], Across(ray="local")))
    assert len(asked) == 3


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
