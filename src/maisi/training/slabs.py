"""Steps on activations that are split into slabs: in one process, or each process has its own (see `splitting`).

A volume that is too large for one device trains over several: weights are replicated, every process takes every batch,
keeps what the backward pass reads of its own slabs alone, and gradients are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from maisi.splitting.ranks import Ranks
from maisi.splitting.shares import Shares, SupposedShares
from maisi.splitting.slabs import SlabTensor, gather
from maisi.training.distributed import TIMEOUT, Team


@dataclass(frozen=True)
class Slabs:
    """Into how many slabs activations are split, and over which processes; one slab is the whole."""

    count: int = 1
    ranks: Shares | None = None

    @classmethod
    def of(cls, count: int) -> "Slabs":
        """Slabs over the processes that train together, where there are several of both."""
        alone = count == 1 or Team.here().size == 1
        return cls(count, None if alone else Ranks(TIMEOUT.total_seconds()))

    @classmethod
    def supposed(cls, count: int, processes: int) -> "Slabs":
        """Slabs of one of so many processes that are not there, to count what it holds: that in the middle."""
        return cls(count, SupposedShares(processes // 2, processes) if min(count, processes) > 1 else None)

    def split(self, x: Tensor) -> Tensor:
        """The tensor (b, c, x, y, z), which every process has, as slabs along its longest axis."""
        if self.count == 1:
            return x
        axis = max(range(x.dim() - 2), key=lambda k: x.shape[2 + k])
        if self.ranks is not None and x.requires_grad:
            x = self.ranks.shared(x)
        return SlabTensor.split(x, min(self.count, x.shape[2 + axis]), axis, ranks=self.ranks)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give each process the gradients of all slabs; what no slab uses stays without."""
        if self.ranks is None:
            return
        used = Team.here().gather([parameter.grad is not None for parameter in parameters])
        learning = [parameter for parameter, *by in zip(parameters, *used, strict=True) if any(by)]
        for parameter in learning:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous()  # of channels-last weights it is not
        self.ranks.reduce_gradients(learning)


WHOLE = Slabs()


def gathered(*results: Tensor) -> tuple[Tensor, ...]:
    """Results of one computation as whole tensors, whether they were split or not."""
    slabs = [each for each in results if isinstance(each, SlabTensor)]
    return tuple(gather(*slabs)) if slabs else results
