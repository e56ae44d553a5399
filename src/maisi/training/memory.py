"""What a training step holds in memory, counted without computing it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from maisi.shapes import Frozen
from maisi.training.learner import checkpoint_activations
from maisi.training.optimization import Optimization

NUMBER = 4  # bytes: weights, gradients, moments and averages are float32


class StepMemory(Frozen):
    """Bytes of a step: what stays from step to step, and what the forward pass keeps for the backward pass."""

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """All together, at the end of the forward pass."""
        return self.weights + self.gradients + self.moments + self.averages + self.activations


def step_memory(
    networks: Sequence[nn.Module],
    learning: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    config: Optimization,
) -> StepMemory:
    """What a step of these networks holds, which are on the meta device, as `loss` does.

    With `checkpoint_activations` blocks keep their inputs alone. Half precision halves what activations take, which is
    not counted on: the number is that of float32.
    """
    if config.checkpoint_activations:
        for network in networks:
            checkpoint_activations(network)
    own = {id(p) for network in networks for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss()
    del held
    numbers = sum(p.numel() for network in networks for p in network.parameters())
    learned = sum(p.numel() for network in learning for p in network.parameters() if p.requires_grad)
    return StepMemory(
        weights=NUMBER * numbers,
        gradients=NUMBER * learned,
        moments=2 * NUMBER * learned,
        averages=NUMBER * learned,
        activations=sum(kept.values()),
    )
