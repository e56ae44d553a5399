"""The training loop: steps, checkpoints and exact resuming.

Every random draw of step `n` comes from a generator made of (seed, n), so weights, optimiser moments and the step
number are all the state there is: a run that was killed continues to the result of a run that was not.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maisi.errors import InvalidRequestError
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

    Writes `metrics.jsonl` and the checkpoint beside it; `until` stops early (the run can be continued).
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
    """Write modules, optimiser moments and the step number to one safetensors file, beside and renamed."""
    tensors: dict[str, Tensor] = {}
    for name, module in state.modules.items():
        for key, value in module.state_dict().items():
            tensors[f"module/{name}/{key}"] = value.detach().contiguous()
    for name, optimizer in state.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer/{name}/{index}/{key}"] = torch.as_tensor(value).detach().contiguous()
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(state.step)})


def load_checkpoint(state: TrainingState, path: Path) -> None:
    """Fill `state` from a checkpoint; strict: another architecture or a damaged file is an error."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InvalidRequestError(f"{path} is not a readable checkpoint: {error}") from error
    for name, module in state.modules.items():
        own = _under(tensors, f"module/{name}/")
        expected = module.state_dict()
        odd = sorted(set(own) ^ set(expected)) + [k for k in own if k in expected and own[k].shape != expected[k].shape]
        if odd:
            raise InvalidRequestError(f"{path} is a checkpoint of another {name}: {len(odd)} tensors differ, {odd[:3]}")
        module.load_state_dict(own)
    for name, optimizer in state.optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"optimizer/{name}/").items():
            index, moment = key.split("/")
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    state.step = int(metadata["step"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights, with the usual warm-up min(decay, (1 + n) / (10 + n))."""
    rate = 1.0 - min(decay, (1 + step) / (10 + step))
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, rate)


def warmed_cosine(step: int, num_steps: int, warmup: int, floor: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))


def mixed_precision(bfloat16: bool) -> torch.autocast:
    """Products in bfloat16 where asked for and where this processor multiplies in it; elsewhere it would be slower."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16 and multiplies_bfloat16())


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group; stateless schedules keep checkpoints small."""
    for group in optimizer.param_groups:
        group["lr"] = value
