"""One training over several processes: each learns from its part of every batch, and all keep the same weights.

Micro-batch `i` of a step belongs to rank `i % size`, so that a step is the same set of micro-batches however many
processes share it. Weights are replicated (DDP), or cut into rows over the ranks (FSDP2, `fully_shard`).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maisi.errors import InvalidRequestError
from maisi.networks.attention import ContextAttention, SelfAttention
from maisi.networks.blocks import ResBlock
from maisi.networks.unet import TimeResBlock
from maisi.splitting.ranks import failing_together

T = TypeVar("T")
Losses = Callable[[str], Mapping[str, Tensor]]

BLOCKS = (ResBlock, TimeResBlock, SelfAttention, ContextAttention)
"""What is computed again, and what is gathered, one at a time."""

TIMEOUT = timedelta(minutes=30)  # the first rank writes checkpoints and pictures while the others wait


@dataclass(frozen=True)
class Team:
    """The processes that train together, and this one's place among them; a process alone is a team of one."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Team":
        """The processes of the `torch.distributed` run that this one has joined, else this one alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """True on the one that writes."""
        return self.rank == 0

    def parts(self, count: int) -> range:
        """The micro-batches of a step that this process computes, of `count`.

        Raises `InvalidRequestError` where they cannot be shared evenly.
        """
        if count % self.size:
            low = count - count % self.size
            nearest = " or ".join(str(n) for n in (low, low + self.size) if n)
            raise InvalidRequestError(
                f"{self.size} processes cannot share {count} batches a step evenly; accepted: accumulate {nearest}"
            )
        return range(self.rank, count, self.size)

    def gather(self, own: T) -> list[T]:
        """What each process has, in the order of ranks."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        with failing_together():
            dist.all_gather_object(found, own, group=_talk())
        return found

    def agree(self, own: T) -> T:
        """What the first process has."""
        return self.gather(own)[0]

    def start_alike(self, network: nn.Module) -> None:
        """Give a network the weights that it has in the first process."""
        if self.size > 1:
            with failing_together():
                for tensor in network.state_dict().values():
                    dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return when every process has come this far."""
        self.gather(None)


def _talk() -> dist.ProcessGroup:
    """A group of its own for small things, on the CPU whatever the networks are on."""
    return _talk_of(dist.group.WORLD)


@cache
def _talk_of(world: dist.ProcessGroup) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return group


class LossesOf(nn.Module):
    """The losses of a micro-batch as one call of a module, whatever methods of the networks they use.

    DDP and FSDP see nothing but calls of a module. Only `total` carries gradients out.
    """

    def __init__(self, networks: Mapping[str, nn.Module], total: str) -> None:
        super().__init__()
        self.networks, self.total = nn.ModuleDict(networks), total

    def forward(self, losses: Losses, precision: str) -> dict[str, Tensor]:
        return {name: value if name == self.total else value.detach() for name, value in losses(precision).items()}


def learning_together(
    networks: Mapping[str, nn.Module], total: str, device: torch.device, sharded: bool
) -> LossesOf | DistributedDataParallel:
    """What computes losses so that their gradients, after backward, are the mean over the processes.

    With `sharded` weights become rows of themselves in the same modules.
    """
    losses = LossesOf(networks, total)
    team = Team.here()
    if team.size == 1 or not any(parameter.requires_grad for parameter in losses.parameters()):
        return losses
    with failing_together():
        if not sharded:
            for parameter in losses.parameters():
                if parameter.is_contiguous():  # of 1x1x1 kernels, whose strides are else not those of their gradients
                    parameter.data = parameter.data.reshape(-1).reshape(parameter.shape)
            return DistributedDataParallel(losses, find_unused_parameters=True, gradient_as_bucket_view=True)
        from torch.distributed.device_mesh import init_device_mesh  # a second, which few trainings need
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (team.size,))
    for parameter in losses.parameters():
        parameter.data = parameter.data.contiguous()  # rows of channels-last weights are no rows in memory
    for module in reversed(list(losses.modules())):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh)
    fully_shard(losses, mesh=mesh)
    return losses


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has rows, gathered; any other as it is."""
    if not in_rows(tensor):
        return tensor
    with failing_together():
        gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return gathered


def in_rows(tensor: Tensor) -> bool:
    """Whether each process has rows of it."""
    if Team.here().size == 1:
        return False
    from torch.distributed.tensor import DTensor  # a second, which few trainings need

    return isinstance(tensor, DTensor)


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process where several train together.

    Raises `InvalidRequestError` where all of them are sent to one.
    """
    if device.type != "cuda" or Team.here().size == 1:
        return device
    if device.index is not None:
        raise InvalidRequestError(f"several processes cannot share {device}; accepted: cuda, for each its own")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
