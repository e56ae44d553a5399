"""What a training step holds in memory, counted without computing it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maisi.shapes import Frozen
from maisi.training.learner import checkpoint_activations
from maisi.training.optimization import Optimization
from maisi.training.slabs import Slabs

NUMBER = 4  # bytes: weights, gradients, moments and averages are float32


class StepMemory(Frozen):
    """Bytes of a step: what stays from step to step, and what the forward pass keeps for the backward pass.

    They are those of each of `processes` that share the slabs of a step.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int
    processes: int = 1

    @property
    def total(self) -> int:
        """All together, at the end of the forward pass."""
        return self.weights + self.gradients + self.moments + self.averages + self.activations


def step_memory(
    networks: Sequence[nn.Module],
    learning: Sequence[nn.Module],
    loss: Callable[[Slabs], Tensor],
    config: Optimization,
    processes: int = 1,
) -> StepMemory:
    """What a step of these networks holds, which are on the meta device, as `loss` does on the slabs it is given.

    Where the settings divide activations into slabs, `processes` share them, and the number is that of one of these.
    With `checkpoint_activations` blocks keep their inputs alone. Half precision halves what activations take, which is
    not counted on: the number is that of float32.
    """
    if config.checkpoint_activations:
        for network in networks:
            checkpoint_activations(network)
    slabs = Slabs.supposed(config.slabs, processes)
    numbers = sum(p.numel() for network in networks for p in network.parameters())
    learned = sum(p.numel() for network in learning for p in network.parameters() if p.requires_grad)
    return StepMemory(
        weights=NUMBER * numbers,
        gradients=NUMBER * learned,
        moments=2 * NUMBER * learned,
        averages=NUMBER * learned,
        activations=kept_bytes(networks, lambda: loss(slabs)),
        processes=processes if config.slabs > 1 else 1,
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


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device as devices compute it: the table of all tokens by all tokens is never there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and all(type(x) is Tensor and x.is_meta for x in args):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **(kwargs or {}))
