"""The training loop: steps, checkpoints and exact resuming.

Every random draw of step `n` comes from a generator made of (seed, n), so weights, optimiser moments and the step
number are all the state there is: a run that was killed continues to the result of a run that was not.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from maisi.errors import InvalidRequestError, RunError
from maisi.shapes import Frozen
from maisi.splitting.cpu.heap import freed_slabs
from maisi.splitting.cpu.kernels import multiplies_bfloat16
from maisi.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

StepFunction = Callable[[int], Mapping[str, float]]


class LoopConfig(Frozen):
    """How long to train and how often to save."""

    num_steps: int = Field(ge=1)
    save_every: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass
class TrainingState:
    """All that a checkpoint holds: named modules, named optimisers, the number of finished steps."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0


def step_generators(seed: int, step: int) -> tuple[torch.Generator, np.random.Generator]:
    """The torch and numpy generators of one training step."""
    words = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1))), np.random.default_rng(int(words[1]))


def fit(
    state: TrainingState,
    take_step: StepFunction,
    config: LoopConfig,
    folder: Path,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    until: int | None = None,
) -> None:
    """Run `take_step(n)` until `num_steps` are done, resuming from `folder/checkpoint.safetensors` where there is one.

    Writes `metrics.jsonl` and the checkpoint beside it; `until` stops early (the run can be continued). Raises
    `RunError` at the first step whose metrics are not finite, so that no checkpoint holds what came of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        load_checkpoint(state, checkpoint)
        logger.info("resuming %s at step %d of %d", folder, state.step, config.num_steps)
    _cut_metrics(folder / "metrics.jsonl", state.step)
    with freed_slabs(kept=True):  # the system would spend a good part of every step on clearing fresh memory
        _run(state, take_step, config, folder, on_step, min(config.num_steps, until or config.num_steps))


def _run(
    state: TrainingState,
    take_step: StepFunction,
    config: LoopConfig,
    folder: Path,
    on_step: Callable[[int, Mapping[str, float]], None] | None,
    last: int,
) -> None:
    checkpoint = folder / "checkpoint.safetensors"
    pending: list[str] = []
    while state.step < last:
        started = time.perf_counter()
        metrics = dict(take_step(state.step))
        state.step += 1
        wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise RunError(f"step {state.step} of {folder} went wrong ({', '.join(wrong)}); no checkpoint holds it")
        pending.append(json.dumps({"step": state.step, **metrics, "seconds": round(time.perf_counter() - started, 3)}))
        if on_step is not None:
            on_step(state.step, metrics)
        if state.step % config.save_every == 0 or state.step == last:
            save_checkpoint(state, checkpoint)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write("\n".join(pending) + "\n")
            pending.clear()


def _cut_metrics(path: Path, step: int) -> None:
    """Drop lines of steps that the checkpoint does not contain, and a last line that a kill cut short."""
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Write modules, optimiser moments and the step number to one safetensors file, beside and renamed.

    All is kept under the names of the parameters: `module/NAME/PARAMETER`, `optimizer/NAME/PARAMETER/MOMENT`.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in state.modules.items():
        for key, value in module.state_dict().items():
            tensors[f"module/{name}/{key}"] = value.detach().contiguous()
    learned: dict[str, list[str]] = {}
    for name, optimizer in state.optimizers.items():
        parameters = _parameters(name, optimizer)
        learned[name] = list(parameters)
        for key, parameter in parameters.items():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}/{moment}"] = torch.as_tensor(value).detach().contiguous()
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(state.step), "learned": json.dumps(learned)})


def load_checkpoint(state: TrainingState, path: Path) -> None:
    """Fill `state` from a checkpoint; strict: of other parameters, or damaged, it is an `InvalidRequestError`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InvalidRequestError(f"{path} is not a readable checkpoint: {error}") from error
    if not {"step", "learned"} <= metadata.keys():
        raise InvalidRequestError(f"{path} is no checkpoint of this version: it does not name what had learned by when")
    step, learned = int(metadata["step"]), json.loads(metadata["learned"])
    for name, module in state.modules.items():
        _check_parameters(path, name, module.state_dict(), _under(tensors, f"module/{name}/"))
    for name, optimizer in state.optimizers.items():
        _check_names(path, f"optimizer of {name}", list(_parameters(name, optimizer)), learned.get(name, []))
    for name, module in state.modules.items():
        module.load_state_dict(_under(tensors, f"module/{name}/"))
    for name, optimizer in state.optimizers.items():
        _load_moments(path, name, optimizer, _under(tensors, f"optimizer/{name}/"))
    state.step = step


def _load_moments(path: Path, name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments of a checkpoint; a parameter that has not learned yet has none."""
    parameters = _parameters(name, optimizer)
    places = {key: index for index, key in enumerate(parameters)}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, moment = key.rpartition("/")
        if parameter not in parameters or (value.ndim and value.shape != parameters[parameter].shape):
            shape = tuple(value.shape)
            raise InvalidRequestError(f"{path} is of another {name}: {moment} of {parameter} has the shape {shape}")
        moments.setdefault(places[parameter], {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(name: str, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that an optimiser changes, by the names that it was given with them, in its own order."""
    found: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        assert "param_names" in group, f"the optimiser of {name} was made without names"
        found |= dict(zip(group["param_names"], group["params"], strict=True))
    return found


def _check_parameters(path: Path, name: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    _check_names(path, name, expected, got)
    odd = [key for key in expected if got[key].shape != expected[key].shape]
    if odd:
        told = [f"{key} {tuple(got[key].shape)} instead of {tuple(expected[key].shape)}" for key in odd]
        raise InvalidRequestError(f"{path} is a checkpoint of another {name}: {_few(told)}")


def _check_names(path: Path, name: str, expected: Collection[str], got: Collection[str]) -> None:
    lacking, foreign = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    told = [f"without {_few(lacking)}"] * bool(lacking) + [f"with {_few(foreign)}"] * bool(foreign)
    if told:
        raise InvalidRequestError(f"{path} is a checkpoint of another {name}: {', '.join(told)}")


def _few(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights, with the usual warm-up min(decay, (1 + n) / (10 + n))."""
    update = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    update(list(average.parameters()), list(module.parameters()), step)


def warmed_cosine(step: int, num_steps: int, warmup: int, floor: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))


def training_device(name: str) -> torch.device:
    """The device of a setting; raises `InvalidRequestError` for one that is not there."""
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise InvalidRequestError(f"there is no device {name} here to train on; accepted: {there}")
    return device


LEAST_PLANES = 3
"""Of a feature map whose weights learn in bfloat16 on a CPU: with two, gradients hold what memory held (torch 2.13)."""


def mixed_precision(bfloat16: bool, device: torch.device, least_planes: int) -> torch.autocast:
    """Products in bfloat16 where asked for, if the device multiplies in it: a GPU always, a processor where it can.

    Elsewhere it would be slower. `least_planes` is the shortest edge of any feature map that a convolution makes; on a
    CPU, fewer than `LEAST_PLANES` are computed in float32.
    """
    enabled = device.type != "cpu" or (multiplies_bfloat16() and least_planes >= LEAST_PLANES)
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and enabled)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group; stateless schedules keep checkpoints small."""
    for group in optimizer.param_groups:
        group["lr"] = value
