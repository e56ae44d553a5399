"""The benchmark for a GPU as far as a CPU can tell: every section at a tiny size, and what keeps the time."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SECTIONS = ["parity", "split", "same_seed", "waits", "decode", "steps", "memory", "end_to_end", "variants"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the command writes for the CPU."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_every_section_is_done_and_nothing_fails(found: dict) -> None:
    assert list(found["sections"]) == SECTIONS
    assert {name: section["error"] for name, section in found["sections"].items()} == dict.fromkeys(SECTIONS)
    rows = [row for section in found["sections"].values() for row in section["rows"]]
    assert [row for row in rows if "error" in row] == []
    assert {row["skipped"] for row in rows if "skipped" in row} == {"needs a GPU"}
    assert found["machine"]["device"] == "cpu"


def test_a_gpu_is_given_less_than_six_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sections = importlib.import_module("gpu").all_sections("cuda")
    assert [section.name for section in sections] == SECTIONS
    assert sum(section.budget_s for section in sections) <= 340


def test_networks_agree_with_the_reference_and_slabs_with_the_whole(found: dict) -> None:
    for name, least in (("parity", 11), ("split", 9), ("same_seed", 2)):
        rows = found["sections"][name]["rows"]
        assert len(rows) == least
        assert [row["label"] for row in rows if not row["within"]] == []
    assert all(row["largest"] < 1e-5 for name in ("parity", "split") for row in found["sections"][name]["rows"])


def test_each_figure_tells_its_precision_and_time(found: dict) -> None:
    for name in ("decode", "steps", "memory", "end_to_end"):
        for row in found["sections"][name]["rows"]:
            assert row["seconds"] > 0
            assert row["precision"] in ("float32", "bfloat16")
    halves = [row for row in found["sections"]["decode"]["rows"] if row["precision"] == "bfloat16"]
    assert all(0 < row["rms_from_float32"] < 0.03 for row in halves if "rms_from_float32" in row)
    assert any("rms_from_float32" in row for row in halves)
    assert {"prepare_s", "labels_s", "sample_s", "decode_s"} <= set(found["sections"]["end_to_end"]["rows"][0])


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device", "cuda", "--small"]])
def test_what_a_machine_cannot_measure_is_refused_in_a_sentence(arguments: list[str]) -> None:
    if arguments[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "accepted" in done.stderr.splitlines()[-1]


# Time budgets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that keeps the time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_measure")


def test_a_section_that_fails_or_overruns_keeps_its_rows_and_the_next_goes_on(measure: ModuleType) -> None:
    gauge = measure.Gauge(torch.device("cpu"))

    def failing(gauge: object) -> Iterator[dict]:
        yield {"label": "first"}
        raise ValueError("no such network")

    def endless(gauge: object) -> Iterator[dict]:
        yield {"label": "first"}
        time.sleep(60)

    for rows, allowance, error in (
        (failing, 20, "ValueError: no such network"),
        (endless, 1, "stopped after 1 s"),
        (failing, 0.5, "skipped: no time left"),
    ):
        section = measure.Section("name", "Title", 20, rows)
        section.run(gauge, allowance)
        assert section.error == error
        assert section.found == ([] if allowance < 1 else [{"label": "first"}])
        assert section.seconds < 10
        assert error in measure.table(section)


def test_a_figure_that_cannot_be_had_says_why(measure: ModuleType) -> None:
    gauge = measure.Gauge(torch.device("cpu"), rounds=2)
    assert gauge.row("slow", lambda: time.sleep(60), limit_s=0.2)["error"].startswith("not done within")
    assert gauge.row("wrong", lambda: torch.zeros(2) @ torch.zeros(3))["error"].startswith("RuntimeError")
    assert gauge.row("right", lambda: None, precision="float32")["rounds"] == 2
    late = measure.Gauge(torch.device("cpu"), deadline=time.monotonic())
    assert late.row("late", lambda: None)["skipped"] == "no time left"


def test_a_limit_within_a_limit_does_not_end_the_outer_one(measure: ModuleType) -> None:
    ended: list[str] = []

    def inner() -> None:
        with measure.at_most(0.1):
            time.sleep(60)

    def outer() -> None:
        with measure.at_most(0.5):
            try:
                inner()
            except measure.OutOfTime:
                ended.append("inner")
            time.sleep(60)

    with pytest.raises(measure.OutOfTime):
        outer()
    assert ended == ["inner"]
