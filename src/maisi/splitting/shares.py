"""The part of one process in a computation that several share, whether the others are there or only supposed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.graph import MomentsOf, Node, Summary
from maisi.splitting.layout import Range
from maisi.splitting.norm import no_moments
from maisi.splitting.store import MemoryStore


class Shares(ABC):
    """This process, `rank`, among `size` that share a computation: which rows are its own, and what others give it."""

    rank: int
    size: int

    def slabs(self, count: int, rank: int | None = None) -> Range:
        """The slabs of a rank, by default this one: first..last, last excluded."""
        rank = self.rank if rank is None else rank
        return count * rank // self.size, count * (rank + 1) // self.size

    def owned(self, cuts: Sequence[int], rank: int | None = None) -> Range:
        """The rows of a rank."""
        first, last = self.slabs(len(cuts) - 1, rank)
        return cuts[first], cuts[last]

    @abstractmethod
    def begin(self, device: torch.device) -> None:
        """Starts a new order of communication, of tensors on a device: ranks without rows know it by this alone."""

    @abstractmethod
    def abort(self) -> None:
        """Leaves the run, so that the others fail at once instead of waiting."""

    @abstractmethod
    def shared(self, x: Tensor) -> Tensor:
        """A tensor that is alike on all ranks; its gradient is the sum of what each rank makes from its own slabs."""

    @abstractmethod
    def exchange(self, source: Node, rows: Callable[[int, int], Tensor], wanted: Sequence[Range]) -> MemoryStore:
        """Rows of other ranks that this one wants; `rows(start, stop)` gives own ones, `wanted` is of every rank."""

    @abstractmethod
    def share(self, summary: Summary, contributions: list[Any]) -> list[Any]:
        """Contributions of all ranks, in the order of their rows."""

    @abstractmethod
    def gather(self, node: Node, slabs: Sequence[Tensor], replicated: bool = False) -> list[Tensor]:
        """Slabs of all ranks, in the order of their rows, on every rank.

        `replicated`: all ranks go on to do the same with them, so their gradients are not to be summed.
        """

    @abstractmethod
    def reduce_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Sums the gradients of parameters and inputs over the ranks: each has those of its own rows."""


class SupposedShares(Shares):
    """One process of a number that are not there: what they would give is there in shape alone, on the meta device.

    For counting what a process holds; nothing that is computed with it is right.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def begin(self, device: torch.device) -> None:
        """Nothing: nothing is sent."""

    def abort(self) -> None:
        """Nothing: nobody waits."""

    def shared(self, x: Tensor) -> Tensor:
        return x

    def exchange(self, source: Node, rows: Callable[[int, int], Tensor], wanted: Sequence[Range]) -> MemoryStore:
        own, (low, high) = self.owned(source.cuts), wanted[self.rank]
        halo = MemoryStore(source.layout)
        for start, stop in ((low, min(high, own[0])), (max(low, own[1]), high)):
            if start < stop:
                shape = source.layout.local_shape(stop - start)
                halo.put(start, stop, torch.empty(shape, dtype=source.dtype, device="meta"))
        return halo

    def share(self, summary: Summary, contributions: list[Any]) -> list[Any]:
        if not isinstance(summary, MomentsOf):
            return self.gather(summary, contributions)
        none = no_moments(summary.layout.shape[0], summary.groups, torch.device("meta"))
        return (contributions or [none]) * self.size

    def gather(self, node: Node, slabs: Sequence[Tensor], replicated: bool = False) -> list[Tensor]:
        start, stop = self.owned(node.cuts)
        others = (start, node.cuts[-1] - stop)
        before, after = (
            [torch.empty(node.layout.local_shape(rows), dtype=node.dtype, device="meta")] if rows else []
            for rows in others
        )
        return [*before, *slabs, *after]

    def reduce_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: there are none."""
