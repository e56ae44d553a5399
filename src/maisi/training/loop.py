"""The training loop: steps, validation, checkpoints and exact resuming.

Every random draw of step `n` comes from a generator made of (seed, n), so weights, optimiser moments, the step number
and a few numbers that keepers keep are all the state there is: a run that was killed continues to the result of a run
that was not.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from maisi.compute.machine import multiply_exactly
from maisi.errors import InvalidRequestError, RunError
from maisi.shapes import Frozen
from maisi.splitting.cpu.heap import are_given_back, freed_slabs
from maisi.training.distributed import Team, local_device
from maisi.training.pace import Cost, Pace, alike
from maisi.training.state import TrainingState, has_checkpoint, load_averages, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

StepFunction = Callable[[int], Mapping[str, float]]
Validate = Callable[[int], Mapping[str, float]]
OnStep = Callable[[int, Mapping[str, float]], None]

CHECKPOINT, BEST, METRICS, CURVES = "checkpoint.safetensors", "best.safetensors", "metrics.jsonl", "tensorboard"
VALIDATION, SAVING = "validation", "saving"
CRITERION = "loss"  # of a validation: the least is the best


class LoopConfig(Frozen):
    """How long to train (in steps, or epochs over the cases), how often to save and validate, when to stop early."""

    num_steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    save_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=0, ge=0)  # steps; 0: never
    patience: int | None = Field(default=None, ge=1)  # validations without a better one, before training stops
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> "LoopConfig":
        if (self.num_steps is None) == (self.epochs is None):
            raise ValueError("a run has either num_steps or epochs")
        if self.patience is not None and not self.validate_every:
            raise ValueError("patience counts validations; accepted: with validate_every, or without patience")
        return self

    def counted(self, num_cases: int, cases_per_step: int) -> "LoopConfig":
        """The same in steps: an epoch is as many as show each case once."""
        if self.num_steps is not None:
            return self
        assert self.epochs is not None
        steps = self.epochs * -(-num_cases // cases_per_step)
        return self.model_copy(update={"num_steps": steps, "epochs": None})

    @property
    def steps(self) -> int:
        """How many steps there are, once they are counted."""
        assert self.num_steps is not None
        return self.num_steps


@dataclass
class _Validations:
    """The best validation so far, and how many there were since: kept from step to step."""

    best: float = math.inf
    since: int = 0
    stopped: bool = False

    def facts(self) -> dict[str, float]:
        return {"best": self.best if math.isfinite(self.best) else -1.0, "since": self.since, "stopped": self.stopped}

    def resume(self, facts: Mapping[str, float]) -> None:
        self.best = facts["best"] if facts["best"] >= 0 else math.inf
        self.since, self.stopped = int(facts["since"]), bool(facts["stopped"])


def step_generators(seed: int, step: int) -> tuple[torch.Generator, np.random.Generator]:
    """The torch and numpy generators of one training step."""
    words = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1))), np.random.default_rng(int(words[1]))


def fit(
    state: TrainingState,
    take_step: StepFunction,
    config: LoopConfig,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    validate: Validate | None = None,
    cost: Cost = alike,
) -> None:
    """Run `take_step(n)` until `num_steps` are done, resuming from `folder/checkpoint.safetensors` where there is one.

    Writes `metrics.jsonl`, curves for TensorBoard where it is installed, and the checkpoint; with `validate`, every
    `validate_every` steps its numbers too, and `best.safetensors` at the least `loss` so far, after which `patience`
    counts: with it, the averages at the end are those of the best validation. `until` stops early (the run can be
    continued). `on_step` is told the pace too, see `pace`, for which `cost` tells how long a step takes beside others.
    Raises `RunError` at the first step whose metrics are not finite, so that no checkpoint holds what came of it.
    """
    team = Team.here()
    if team.is_first:
        folder.mkdir(parents=True, exist_ok=True)
    team.wait()
    validations = _Validations()
    state.keepers["validations"] = validations
    if has_checkpoint(folder / CHECKPOINT):
        load_checkpoint(state, folder / CHECKPOINT)
        logger.info("resuming %s at step %d of %d", folder, state.step, config.steps)
    if team.is_first:
        _cut_metrics(folder / METRICS, state.step)
    team.wait()
    last = min(config.steps, until or config.steps)
    every = {VALIDATION: 0 if validate is None else config.validate_every, SAVING: config.save_every}
    pace = Pace(config.steps, cost, every)
    with freed_slabs(kept=not are_given_back()), _Told.of(folder, state.step, on_step, team.is_first, pace) as told:
        # the system spends a good part of every step on clearing fresh memory where it is given back
        while state.step < last and not validations.stopped:
            _step(state, take_step, folder, told)
            if validate is not None and config.validate_every and state.step % config.validate_every == 0:
                _validated(state, validate, validations, config, folder, told)
            if state.step % config.save_every == 0 or state.step == last or validations.stopped:
                _saved(state, folder, told)
    if config.patience is not None and (validations.stopped or state.step >= config.steps):
        _give_best(state, folder)


def _give_best(state: TrainingState, folder: Path) -> None:
    """Make the averages those of the best validation, where there was one; all else stays as it is at the end."""
    if not has_checkpoint(folder / BEST):
        return
    step = load_averages(state, folder / BEST)
    if step < state.step and Team.here().is_first:
        logger.warning(
            "%s gives its weights of step %d, the best validated, and not those of its last step, %d",
            folder,
            step,
            state.step,
        )


def _saved(state: TrainingState, folder: Path, told: "_Told") -> None:
    started = time.perf_counter()
    told.flush()  # first: what the checkpoint lacks is cut again
    save_checkpoint(state, folder / CHECKPOINT)
    told.pace.took(SAVING, time.perf_counter() - started)


def _step(state: TrainingState, take_step: StepFunction, folder: Path, told: "_Told") -> None:
    started = time.perf_counter()
    metrics = dict(take_step(state.step))
    state.step += 1
    _check_finite(metrics, state.step, folder)
    seconds = time.perf_counter() - started
    told.pace.stepped(state.step - 1, seconds)
    told.tell(state.step, metrics, seconds)


def _validated(
    state: TrainingState, validate: Validate, kept: _Validations, config: LoopConfig, folder: Path, told: "_Told"
) -> None:
    started = time.perf_counter()
    metrics = Team.here().agree(dict(validate(state.step)))
    _check_finite(metrics, state.step, folder)
    seconds = time.perf_counter() - started
    told.pace.took(VALIDATION, seconds)
    told.tell(state.step, metrics, seconds, VALIDATION)
    if metrics[CRITERION] < kept.best:
        kept.best, kept.since = metrics[CRITERION], 0
        save_checkpoint(state, folder / BEST)
    else:
        kept.since += 1
    if config.patience is not None and kept.since >= config.patience:
        logger.warning("%s stops at step %d: no better validation in %d", folder, state.step, kept.since)
        kept.stopped = True


def _check_finite(metrics: Mapping[str, float], step: int, folder: Path) -> None:
    wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise RunError(f"step {step} of {folder} went wrong ({', '.join(wrong)}); no checkpoint holds it")


@dataclass
class _Told:
    """Where the numbers of steps go: a file of lines, curves, and whoever listens."""

    path: Path
    on_step: OnStep | None
    curves: Any  # a SummaryWriter, or None where TensorBoard is not installed
    is_first: bool  # of the processes that train together: the one that tells
    pace: Pace
    pending: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, step: int, on_step: OnStep | None, is_first: bool, pace: Pace) -> "_Told":
        """To a folder, from that step on."""
        if not is_first:
            return cls(folder / METRICS, None, None, False, pace)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return cls(folder / METRICS, on_step, None, True, pace)
        curves = SummaryWriter(str(folder / CURVES), purge_step=step + 1)
        return cls(folder / METRICS, on_step, curves, True, pace)

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *error: object) -> None:
        if self.curves is not None:
            self.curves.close()

    def tell(self, step: int, metrics: Mapping[str, float], seconds: float, split: str = "training") -> None:
        """Tell the numbers of a step, or of a validation."""
        if not self.is_first:
            return
        about = {} if split == "training" else {"split": split}
        self.pending.append(json.dumps({"step": step, **about, **metrics, "seconds": round(seconds, 3)}))
        if self.curves is not None:
            for name, value in metrics.items():
                self.curves.add_scalar(f"{split}/{name}", value, step)
        if self.on_step is not None:
            named = metrics if split == "training" else {f"{split} {name}": value for name, value in metrics.items()}
            self.on_step(step, {**named, **self.pace.facts(step)})

    def flush(self) -> None:
        """Write what is pending."""
        if not self.is_first:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in self.pending))
        self.pending.clear()


def _cut_metrics(path: Path, step: int) -> None:
    """Drop lines of steps that the checkpoint does not contain, and a last line that a kill cut short."""
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def found_device(name: str) -> torch.device:
    """The device of a setting, `cuda` that of this process; raises `InvalidRequestError` for one that is not there."""
    device = local_device(torch.device(name))
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise InvalidRequestError(f"there is no device {name} here to train on; accepted: {there}")
    return device


def training_device(name: str) -> torch.device:
    """The same, made ready to train on."""
    device = found_device(name)
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)  # what is put "on the GPU" without a number is on this one
    if device.type == "cuda":
        multiply_exactly()  # what is to be learned in float32 is
    return device
