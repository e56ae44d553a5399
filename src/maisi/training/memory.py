"""What a training step holds in memory, counted without computing it."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maisi.shapes import Frozen
from maisi.training.learner import checkpoint_activations
from maisi.training.optimization import Optimization
from maisi.training.slabs import Slabs

NUMBER = 4  # bytes: weights, gradients, moments and averages are float32

TRAINING_PROCESS_BYTES = 500_000_000
"""What the process of a training holds besides its steps: Python, torch and the libraries, and what torch works in for
convolutions of little data (measured on Linux, CPU build)."""

Loss = Callable[[Slabs], Tensor]


class StepMemory(Frozen):
    """Bytes of a step: what stays from step to step, what it makes, and `peak`, the most that there is at a time.

    They are those of each of `processes` that share the slabs of a step. Gradients come while activations go, so the
    peak may be less than the sum; blocks that are computed again and what a convolution works in may make it more.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int  # what the forward pass keeps for the backward pass
    peak: int
    processes: int = 1

    @property
    def total(self) -> int:
        """The memory that a step needs: a tenth more than its tensors, for what libraries work in."""
        return self.peak + self.peak // 10


def step_memory(
    networks: Sequence[nn.Module],
    learning: Sequence[nn.Module],
    losses: Sequence[Loss],
    config: Optimization,
    processes: int | None = None,
) -> StepMemory:
    """What a step of these networks holds, which are on the meta device, as `losses` do on the slabs they are given.

    The first is that of which the activations are told; each is followed by its backward pass, and gradients stay.
    Where the settings divide activations into slabs, `processes` share them, by default as many as there are slabs,
    and the number is that of one of these. Else each has all, and gradients lie where they travel from all the time.
    With `checkpoint_activations` blocks of those that are learning keep their inputs alone. Half precision halves what
    activations take, which is not counted on: the number is that of float32.
    """
    if config.checkpoint_activations:
        for network in learning:
            checkpoint_activations(network, lambda: (nullcontext(), FusedAttention()))
    shared = min(processes or config.slabs, config.slabs)
    slabs = Slabs.supposed(config.slabs, shared)
    replicated = config.slabs == 1 and (processes or 1) > 1
    numbers = sum(p.numel() for network in networks for p in network.parameters())
    learned = sum(p.numel() for network in learning for p in network.parameters() if p.requires_grad)
    kept = NUMBER * (numbers + 3 * learned)  # weights, two moments and the average
    return StepMemory(
        weights=NUMBER * numbers,
        gradients=NUMBER * learned,
        moments=2 * NUMBER * learned,
        averages=NUMBER * learned,
        activations=kept_bytes(networks, lambda: losses[0](slabs)),
        peak=kept
        + most_bytes(networks, [partial(loss, slabs) for loss in losses], replicated or config.accumulate > 1),
        processes=shared,
    )


def kept_bytes(networks: Sequence[nn.Module], loss: Callable[[], Tensor]) -> int:
    """Bytes that the forward pass of a loss keeps for the backward pass, without weights of the networks."""
    own = {id(p) for network in networks for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss()
    del held
    return sum(kept.values())


def most_bytes(
    networks: Sequence[nn.Module], losses: Sequence[Callable[[], Tensor]], with_gradients: bool = False
) -> int:
    """Bytes at most of all that losses and their backward passes make, one after the other, gradients among them.

    A convolution is counted with a copy of all that it reads and writes, since libraries put it into an order of their
    own. `with_gradients` they are there from the beginning; they are removed afterwards.
    """
    with FusedAttention(), MadeTensors("meta") as made:
        for parameter in (p for network in networks for p in network.parameters() if p.requires_grad):
            parameter.grad = torch.empty_like(parameter) if with_gradients else None
        for loss in losses:
            torch.autograd.backward(loss())
    for network in networks:
        network.zero_grad(set_to_none=True)
    return made.most


class MadeTensors(TorchDispatchMode):
    """Within, counts the bytes of all tensors that operations make on a device, while they are there: `most` of all."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.most = 0
        self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = self._storages(args), self._storages(result)
        given = {storage._cdata for storage in read}
        for storage in made:
            if storage._cdata not in given:  # else it is a view of what was there
                self._count(storage)
        worked_in = sum(storage.nbytes() for storage in (*read, *made)) if func in _CONVOLUTIONS else 0
        self.most = max(self.most, self._now + worked_in)
        return result

    def _storages(self, values: Any) -> list[torch.UntypedStorage]:
        tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
        return [each.untyped_storage() for each in tensors if each.device.type == self.device]

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device as devices compute it: the table of all tokens by all tokens is never there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and all(type(x) is Tensor and x.is_meta for x in args):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **(kwargs or {}))
