"""Networks that learn together: their optimisers, number format, moving averages, and what guards their steps."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from maisi.errors import InvalidRequestError, RunError
from maisi.splitting.cpu.kernels import multiplies_bfloat16
from maisi.splitting.ranks import noticing_lost_ranks
from maisi.splitting.slabs import SlabTensor
from maisi.training.distributed import BLOCKS, LossesOf, Team, learning_together, whole
from maisi.training.optimization import Optimization
from maisi.training.slabs import Slabs
from maisi.training.state import AVERAGE, TrainingState

logger = logging.getLogger(__name__)

Precision = str
Losses = Callable[[Precision], Mapping[str, Tensor]]

LEAST_PLANES = 3
"""Of a feature map whose weights learn in bfloat16 on a CPU: with two, gradients hold what memory held (torch 2.13)."""

TOTAL = "loss"
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step. `losses(precision)` computes them, alike each time; `loss` is minimised, the rest is told.

    `cases` are named where it is not finite.
    """

    losses: Losses
    cases: tuple[str, ...] = ()


class Learner:
    """Networks whose weights change together, in one step of one schedule.

    `rates` are factors of the learning rate, by network. `named` is what the state of a run calls them: averages are
    `average_NAME`, or `average` where there is one network. Where several processes train together, each computes its
    `parts` of a step, all take the same step, and averages are whole on each. With `slabs` in the settings each
    computes its slabs of every batch, which `losses` split by `slabs`; one that is `alone` learns the same in each.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: Optimization,
        num_steps: int,
        rates: Mapping[str, float] | None = None,
        averaged: bool = True,
        alone: bool = False,
    ) -> None:
        self.networks, self.config, self.num_steps = dict(networks), config, num_steps
        self.rates = dict(rates or {})
        first = next(iter(next(iter(networks.values())).parameters()))
        self.device = first.device
        if config.precision == "float16" and self.device.type == "cpu":
            raise InvalidRequestError("float16 learns on a GPU; on the CPU accepted: float32, bfloat16")
        self.team = Team.here()
        self.slabs = Slabs.of(config.slabs)
        takes_all = alone or config.slabs > 1
        # the micro-batches of a step that this process computes
        self.parts = range(config.accumulate) if takes_all else self.team.parts(config.accumulate)
        for network in networks.values():
            self.team.start_alike(network)
        self.averages = {name: copy.deepcopy(network) for name, network in networks.items()} if averaged else {}
        if config.checkpoint_activations:
            for network in networks.values():
                checkpoint_activations(network)
        self._losses_of = (
            LossesOf(self.networks, TOTAL)
            if takes_all
            else learning_together(self.networks, TOTAL, self.device, config.sharded)
        )
        self.optimizers = {name: _optimizer(network, config) for name, network in networks.items()}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self._unscaled = False  # whether gradients were since the scale was brought up to date
        self.skipped = 0  # steps in a row

    def join(self, state: TrainingState) -> None:
        """Make all that a learner is part of the state of a run, so that checkpoints hold it."""
        state.modules |= self.networks
        alone = len(self.averages) == 1
        state.modules |= {AVERAGE if alone else f"{AVERAGE}_{name}": each for name, each in self.averages.items()}
        state.optimizers |= self.optimizers
        state.keepers["/".join(self.networks)] = self

    def facts(self) -> dict[str, float]:
        """The numbers that a resumed run needs besides weights and moments."""
        scale = self.scaler.state_dict()
        return {"skipped": self.skipped, **{name: float(value) for name, value in scale.items()}}

    def resume(self, facts: Mapping[str, float]) -> None:
        """Take up the numbers of an earlier part of the run."""
        self.skipped = int(facts["skipped"])
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            self.scaler.load_state_dict({name: type(state[name])(facts[name]) for name in state})

    @noticing_lost_ranks()
    def update(self, step: int, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """One step on the mean of the batches' losses; the losses, the norm of the gradients, the learning rate.

        `batches` are those of this process, as many on each.

        What is not finite in bfloat16 or float16 is computed again in float32; where that is not finite either the step
        is skipped and told as `skipped`. More than `most_skipped` in a row raise `RunError` with a diagnosis.
        """
        rate = self.config.rate(step, self.num_steps)
        for name, optimizer in self.optimizers.items():
            set_learning_rate(optimizer, rate * self.rates.get(name, 1.0))
        formats = dict.fromkeys((self.config.precision, "float32"))
        for precision in formats:
            losses, norm = self._gradients(batches, precision)
            if math.isfinite(norm) and all(math.isfinite(value) for value in losses.values()):
                self._apply(step, precision)
                self.skipped = 0
                told = {name: round(value, 6) for name, value in losses.items()}
                return {**told, "grad_norm": round(norm, 4), "learning_rate": rate}
            if self.scaler.is_enabled() and all(math.isfinite(value) for value in losses.values()):
                break  # the scale was too large, which is no fault of the data
        self._update_scale()
        self.skipped += 1
        self._zero()
        if self.skipped > self.config.most_skipped:
            raise RunError(self._diagnosis(step, batches, losses, norm, rate))
        logger.warning("step %d of %s was not finite and is skipped", step + 1, ", ".join(self.networks))
        return {"skipped": 1.0, "learning_rate": rate}

    def _gradients(self, batches: Sequence[MicroBatch], precision: str) -> tuple[dict[str, float], float]:
        """Mean losses and the norm of their gradients, which lie in the parameters afterwards, clipped."""
        self._zero()
        sums: dict[str, Tensor] = {}
        for place, batch in enumerate(batches, start=1):
            with self._reducing(place == len(batches)):
                losses = self._losses_of(batch.losses, precision)
            total = losses[TOTAL] / len(batches)
            (self.scaler.scale(total) if precision == "float16" else total).backward()
            for name, value in losses.items():
                part = value.detach().double() / len(batches)
                sums[name] = sums[name] + part if name in sums else part
        learning = [p for network in self.networks.values() for p in network.parameters() if p.requires_grad]
        self.slabs.sum_gradients(learning)
        if precision == "float16":
            for optimizer in self._learning_now():
                self.scaler.unscale_(optimizer)
                self._unscaled = True
        parameters = [p for p in learning if p.grad is not None]
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or math.inf))
        return self._mean({name: float(value) for name, value in sums.items()}), float(norm)

    def _mean(self, losses: dict[str, float]) -> dict[str, float]:
        """The mean over the processes, the same bits on each; what one of them does not tell counts zero there."""
        of_all = self.team.gather(losses)
        names = dict.fromkeys(name for each in of_all for name in each)
        return {name: sum(each.get(name, 0.0) for each in of_all) / len(of_all) for name in names}

    def _reducing(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of replicated weights travel once a step: with its last micro-batch."""
        if last or not isinstance(self._losses_of, DistributedDataParallel):
            return nullcontext()
        return self._losses_of.no_sync()

    def _apply(self, step: int, precision: str) -> None:
        for optimizer in self._learning_now():
            if precision == "float16":
                self.scaler.step(optimizer)
            else:
                optimizer.step()
        self._update_scale()
        for name, average in self.averages.items():
            weights = [whole(parameter.detach()) for parameter in self.networks[name].parameters()]
            update_average(average, weights, self.config.average_decay, step)

    def _learning_now(self) -> list[torch.optim.Optimizer]:
        """The optimizers of networks that took part in this step: without labels, a ControlNet does not."""
        return [
            optimizer
            for optimizer in self.optimizers.values()
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        ]

    def _update_scale(self) -> None:
        """Bring the scale of losses up to date after gradients were unscaled by it, once."""
        if self._unscaled:
            self.scaler.update()
            self._unscaled = False

    def _zero(self) -> None:
        for network in self.networks.values():
            for parameter in network.parameters():
                parameter.grad = None

    def _diagnosis(
        self, step: int, batches: Sequence[MicroBatch], losses: Mapping[str, float], norm: float, rate: float
    ) -> str:
        named = [case for each in self.team.gather([b.cases for b in batches]) for cases in each for case in cases]
        cases = ", ".join(dict.fromkeys(named)) or "unknown cases"
        told = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        first = self._first_not_finite(batches)
        return (
            f"{self.skipped} steps in a row were not finite, the last one step {step + 1} on {cases}, in float32 too "
            f"({told}, gradients {norm:g}, learning rate {rate:.3g}{first}); accepted: a smaller learning rate, a "
            "longer warm-up, or without these cases"
        )

    def _first_not_finite(self, batches: Sequence[MicroBatch]) -> str:
        """Which module was the first to give something that is not finite, for a message."""
        found: list[str] = []

        def watch(name: str, module: nn.Module, inputs: object, output: object) -> None:
            values = output if isinstance(output, tuple) else (output,)
            whole_ones = [value for value in values if isinstance(value, Tensor) and not isinstance(value, SlabTensor)]
            tensors = [value for value in whole_ones if value.is_floating_point()]
            if not found and not all(bool(value.isfinite().all()) for value in tensors):
                found.append(name)

        with _watched(self.networks, watch), torch.no_grad():
            for batch in batches:
                self._losses_of(batch.losses, "float32")
        first = [name for names in self.team.gather(found) for name in names]
        return f", first in {first[0]}" if first else ", with all activations finite"


@contextmanager
def _watched(networks: Mapping[str, nn.Module], watch: Callable[..., None]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(partial(watch, f"{name}.{path}"))
        for name, network in networks.items()
        for path, module in network.named_modules()
        if path and not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _optimizer(network: nn.Module, config: Optimization) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    learning = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    return kind(learning, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group; stateless schedules keep checkpoints small."""
    for group in optimizer.param_groups:
        group["lr"] = value


def update_average(average: nn.Module, weights: Sequence[Tensor], decay: float, step: int) -> None:
    """Exponential moving average of weights, with the usual warm-up min(decay, (1 + n) / (10 + n))."""
    update = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    update(list(average.parameters()), list(weights), step)


def checkpoint_activations(network: nn.Module, within: Contexts = noop_context_fn) -> None:
    """Let the residual and attention blocks of a network compute again in the backward pass what they would keep.

    Gradients are the same bit for bit (Chen et al., arXiv 1604.06174); names of parameters stay. `within` gives what
    blocks are computed in, the first time and again.
    """
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, context_fn=within
            )


def mixed_precision(precision: str, device: torch.device, least_planes: int) -> torch.autocast:
    """Products in bfloat16 or float16 where asked for, if the device multiplies in it.

    A GPU always does, a processor where it can; elsewhere it would be slower. `least_planes` is the shortest edge of
    any feature map that a convolution makes; on a CPU, fewer than `LEAST_PLANES` are computed in float32.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    possible = device.type != "cpu" or (multiplies_bfloat16() and least_planes >= LEAST_PLANES)
    return torch.autocast(device.type, dtype, enabled=precision != "float32" and possible)
