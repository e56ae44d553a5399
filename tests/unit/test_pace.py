"""The time that a training still takes is told by what it has taken."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from maisi.cli.console import lines_of_stages, lines_of_steps
from maisi.training.loop import LoopConfig, fit
from maisi.training.pace import LEFT, SECONDS, STEPS, Pace, spelled
from maisi.training.state import TrainingState


def test_what_is_left_counts_steps_by_their_cost_with_validations_and_checkpoints() -> None:
    pace = Pace(100, lambda step: 1.0 if step < 20 else 8.0, {"validation": 10, "saving": 50})
    assert pace.facts(0) == {STEPS: 100}
    pace.stepped(0, 60.0)  # warms up
    for step in range(1, 10):
        pace.stepped(step, 0.5)
    assert pace.facts(10) == {STEPS: 100, SECONDS: 0.5, LEFT: pytest.approx(10 * 0.5 + 80 * 4.0)}
    pace.took("validation", 3.0)
    pace.took("saving", 1.0)
    told = pace.facts(20)
    assert told[SECONDS] == 4.0
    assert told[LEFT] == pytest.approx(80 * 4.0 + 8 * 3.0 + 2 * 1.0)
    assert pace.facts(100) == {STEPS: 100, LEFT: 0.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (90, "90 s"), (960, "16 min"), (3 * 3600, "3.0 h"), (72 * 3600, "3.0 days")],
)
def test_the_pace_is_told_in_words(seconds: float, said: str) -> None:
    assert spelled({STEPS: 9, SECONDS: 0.517, LEFT: seconds, "loss": 1.0}) == f"0.52 s a step, {said} left"
    assert spelled({STEPS: 9, LEFT: 0.0}) == ""


def test_whoever_listens_to_a_run_is_told_its_pace(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    state = TrainingState(modules={"net": torch.nn.Linear(1, 1)})
    config = LoopConfig(num_steps=4, validate_every=2)

    def listen(step: int, metrics: Mapping[str, float]) -> None:
        told.append((step, dict(metrics)))

    fit(state, lambda step: {"loss": 2.0}, config, tmp_path, listen, None, lambda step: {"loss": 1.0})
    assert [step for step, _ in told] == [1, 2, 2, 3, 4, 4]
    assert all(metrics[STEPS] == 4 for _, metrics in told)
    assert told[0][1][LEFT] > 0
    assert told[-1][1][LEFT] == 0
    assert "seconds_left" not in (tmp_path / "metrics.jsonl").read_text()


def test_where_nobody_watches_a_line_comes_at_most_every_half_minute() -> None:
    said: list[str] = []
    now = [0.0]
    on_stage = lines_of_steps(said.append, lambda: now[0])
    for step in range(1, 101):
        now[0] += 1.0
        on_stage("unet: 1 s a step, loss 0.5", step, 100)
    on_stage("train", 1, 1)
    on_stage("controlnet: loss 0.5", 1, 0)
    assert [line.split(":")[0] for line in said] == [
        *(f"unet {step} of 100" for step in (1, 31, 61, 91, 100)),
        "controlnet 1",
    ]


def test_stages_that_take_long_are_told_with_the_time_left() -> None:
    said: list[str] = []
    now = [0.0]
    on_stage = lines_of_stages("evaluate images", said.append, lambda: now[0])
    for done in range(1, 11):
        on_stage("features", done, 10)
        now[0] += 8.0
    assert said == [
        "evaluate images: features 3 of 10, about 56 s left",
        "evaluate images: features 7 of 10, about 24 s left",
    ]
    quick: list[str] = []
    on_stage = lines_of_stages("evaluate images", quick.append, lambda: now[0])
    on_stage("features", 1, 2)
    assert quick == []
