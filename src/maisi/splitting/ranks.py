"""Slabs over the ranks of a `torch.distributed` run: halos point to point, statistics and keys gathered.

Every rank writes down the same operations and carries out the same sweeps, on the rows of its own slabs. Halos travel
in a process group of their own, for point-to-point traffic that shares a communicator with collectives has corrupted
them. With gradients, a scalar is threaded through all communication, so that backward repeats it in the exact reverse
order on every rank.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.distributed_c10d import _get_default_store

from maisi.errors import InvalidPlanError, RankError
from maisi.splitting.graph import MomentsOf, Node, Summary
from maisi.splitting.layout import Range
from maisi.splitting.norm import Moments, merge
from maisi.splitting.shares import Shares
from maisi.splitting.store import MemoryStore

TIMEOUT_S = 120.0  # of a rank that is alive but silent; a dead one is noticed at once
PATIENT_S = 7200.0  # the same where ranks work on tasks of their own between meetings


_FAILURE = "maisi/failure"


@dataclass(frozen=True)
class Failure:
    """Which rank has failed first, and what it said."""

    rank: int
    message: str


class Ranks(Shares):
    """This process among those that share a computation."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        if not dist.is_initialized():
            raise InvalidPlanError("no distributed run; start with torchrun, or call Ranks.join()")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        wait = timedelta(seconds=timeout_s)
        self._halos, self._collectives = dist.new_group(timeout=wait), dist.new_group(timeout=wait)
        self._patient: Any = None
        self._thread: Tensor | None = None
        self._device = torch.device("cpu")

    @classmethod
    def join(cls, timeout_s: float = TIMEOUT_S) -> "Ranks":
        """Joins the run that torchrun started. Raises `InvalidPlanError` outside of one."""
        if "RANK" not in os.environ:
            raise InvalidPlanError("not started by torchrun: there is no RANK in the environment")
        if not dist.is_initialized():
            with failing_together():
                dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(timeout_s)

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes results and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every rank has come this far."""
        with failing_together():
            dist.barrier(group=self._collectives)

    def leave(self) -> None:
        """Ends this process's part in the run."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def begin(self, device: torch.device) -> None:
        """Starts a new order of communication, of tensors on a device."""
        if device.type == "cuda" and self._device.type != "cuda":
            with failing_together():  # NCCL wants all ranks in the first exchange of a group
                dist.all_reduce(torch.zeros(1, device=device), group=self._halos)
        self._device = device
        self._thread = torch.zeros((), device=device, requires_grad=True) if torch.is_grad_enabled() else None

    def abort(self) -> None:
        """Leaves the run, so that the others fail at once instead of waiting."""
        for group in (self._halos, self._collectives, *([self._patient] if self._patient else [])):
            with contextlib.suppress(RuntimeError, ValueError, AssertionError):
                dist.destroy_process_group(group)

    def shared(self, x: Tensor) -> Tensor:
        """A tensor that is alike on all ranks; its gradient is the sum of what each rank makes from its own slabs."""
        shared: Tensor = Shared.apply(self._collectives, x)
        return shared

    def first_failure(self, message: str | None = None) -> "Failure | None":
        """The failure that was told first, which is this rank's `message` where no other was before; None for none."""
        with contextlib.suppress(RuntimeError):  # the process that keeps what is told may be gone
            store = _get_default_store()
            if message is not None:
                told = store.compare_set(_FAILURE, "", f"{self.rank}:{message}")
            else:
                told = store.get(_FAILURE) if store.check([_FAILURE]) else b""
            rank, _, said = told.decode(errors="replace").partition(":")
            return Failure(int(rank), said) if rank else None
        return None

    def exchange(self, source: Node, rows: Callable[[int, int], Tensor], wanted: Sequence[Range]) -> MemoryStore:
        """Rows of other ranks that this one wants; `rows(start, stop)` gives own ones, `wanted` is of every rank."""
        own = self.owned(source.cuts)
        others = [rank for rank in range(self.size) if rank != self.rank]
        sends = [(rank, overlap(own, wanted[rank])) for rank in others]
        receives = [(rank, overlap(self.owned(source.cuts, rank), wanted[self.rank])) for rank in others]
        sends = [(rank, span) for rank, span in sends if span[0] < span[1]]
        receives = [(rank, span) for rank, span in receives if span[0] < span[1]]
        halo = MemoryStore(source.layout)
        parts = [rows(*span) for _, span in sends]
        shapes = [source.layout.local_shape(stop - start) for _, (start, stop) in receives]
        plan = Halo([r for r, _ in sends], [r for r, _ in receives], shapes, self._halos, source.dtype, self._device)
        if self._thread is None:
            got = plan.swap(parts, plan.to, plan.source, shapes)
        else:
            self._thread, *got = Exchange.apply(plan, self._thread, *parts)
        for (_, (start, stop)), slab in zip(receives, got, strict=True):
            halo.put(start, stop, slab)
        return halo

    def share(self, summary: Summary, contributions: list[Any]) -> list[Any]:
        """Contributions of all ranks, in the order of their rows."""
        if isinstance(summary, MomentsOf):
            return self._share_moments(summary, contributions)
        return self.gather(summary, contributions)

    def _share_moments(self, summary: MomentsOf, contributions: list[Moments]) -> list[Moments]:
        shape = (summary.layout.shape[0], summary.groups)
        if contributions:
            own = merge(contributions)
        else:
            zero = torch.zeros(shape, dtype=torch.float64, device=self._device)
            own = Moments(0, zero, zero)
        packed = torch.stack([torch.full_like(own.mean, own.count).detach(), own.mean, own.m2])
        return [Moments(int(each[0].flatten()[0].item()), each[1], each[2]) for each in self._all_gather(packed)]

    def gather(self, node: Node, slabs: Sequence[Tensor], replicated: bool = False) -> list[Tensor]:
        """Slabs of all ranks, in the order of their rows, on every rank.

        `replicated`: all ranks go on to do the same with them, so their gradients are not to be summed.
        """
        layout = node.layout
        spans = [self.owned(node.cuts, rank) for rank in range(self.size)]
        counts = [stop - start for start, stop in spans]
        most = max(counts)
        nothing = torch.zeros(layout.local_shape(0), dtype=node.dtype, device=self._device)
        own = layout.join(slabs) if slabs else nothing
        missing = most - counts[self.rank]
        if missing:
            own = layout.join([own, own.new_zeros(layout.local_shape(missing))])
        got = self._all_gather(own.contiguous(), replicated)
        return [layout.take(slab, 0, count) for slab, count in zip(got, counts, strict=True) if count]

    def _all_gather(self, own: Tensor, replicated: bool = False) -> list[Tensor]:
        if self._thread is None:
            return all_gather(own, self._collectives)
        if replicated:
            return list(Replicated.apply(self._collectives, self._thread, own))
        self._thread, *got = AllGather.apply(self._collectives, self._thread, own)
        return got

    def collect(self, rows: Tensor) -> list[Tensor]:
        """Rows (n, d) of every rank, n of each its own, in the order of ranks; one without rows need not know d."""
        if self._patient is None:
            self._patient = dist.new_group(timeout=timedelta(seconds=PATIENT_S))
        shapes = [each.tolist() for each in all_gather(torch.tensor(rows.shape, device=rows.device), self._patient)]
        most = [max(sizes) for sizes in zip(*shapes, strict=True)]
        padded = rows.new_zeros(most)
        padded[: rows.shape[0], : rows.shape[1]] = rows
        got = all_gather(padded, self._patient)
        return [each[:count, :width] for each, (count, width) in zip(got, shapes, strict=True)]

    def reduce_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Sums the gradients of parameters and inputs over the ranks: each has those of its own rows."""
        with failing_together():
            for tensor in tensors:
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
                dist.all_reduce(tensor.grad, group=self._collectives)


class Halo:
    """Who sends what to whom in one exchange."""

    def __init__(
        self,
        to: list[int],
        source: list[int],
        shapes: Sequence[Sequence[int]],
        group: Any,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.to, self.source, self.shapes, self.group, self.dtype = to, source, shapes, group, dtype
        self.device = device

    def swap(
        self, parts: Sequence[Tensor], to: Sequence[int], source: Sequence[int], shapes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Sends the parts and receives tensors of the given shapes."""
        parts = [part.contiguous() for part in parts]
        got = [torch.empty(tuple(shape), dtype=self.dtype, device=self.device) for shape in shapes]
        sends = [dist.P2POp(dist.isend, as_bytes(part), rank, self.group) for part, rank in zip(parts, to, strict=True)]
        receives = [dist.P2POp(dist.irecv, as_bytes(x), rank, self.group) for x, rank in zip(got, source, strict=True)]
        with failing_together():
            # together: one after the other, two ranks that send first would wait for each other with NCCL
            for job in dist.batch_isend_irecv([*sends, *receives]) if sends or receives else ():
                job.wait()
        return got


class Exchange(Function):
    """A halo exchange; backward sends the gradients of the halos back to the rows they were copied from."""

    @staticmethod
    def forward(ctx: Any, plan: Halo, thread: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.part_shapes = plan, [tuple(part.shape) for part in parts]
        return thread.clone(), *plan.swap(parts, plan.to, plan.source, plan.shapes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        plan = ctx.plan
        return None, grads[0], *plan.swap(grads[1:], plan.source, plan.to, ctx.part_shapes)


class AllGather(Function):
    """One tensor of every rank; backward sums what all ranks made of this one's."""

    @staticmethod
    def forward(ctx: Any, group: Any, thread: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return thread.clone(), *all_gather(own, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        stacked = torch.stack(grads[1:])
        with failing_together():
            dist.all_reduce(stacked, group=ctx.group)
        return None, grads[0], stacked[dist.get_rank()]


class Replicated(Function):
    """Slabs of all ranks as a result that every rank sees whole and makes the same loss of: each keeps its own part."""

    @staticmethod
    def forward(ctx: Any, group: Any, thread: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        return tuple(all_gather(own, group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, torch.zeros((), device=grads[0].device), grads[dist.get_rank()]


class Shared(Function):
    """A tensor that every rank has whole; backward sums what all ranks made of it."""

    @staticmethod
    def forward(ctx: Any, group: Any, x: Tensor) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        with failing_together():
            dist.all_reduce(total, group=ctx.group)
        return None, total


def all_gather(own: Tensor, group: Any) -> list[Tensor]:
    """The tensors of all ranks."""
    own = own.detach().contiguous()
    got = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    with failing_together():
        dist.all_gather([as_bytes(slab) for slab in got], as_bytes(own), group=group)
    return got


def as_bytes(x: Tensor) -> Tensor:
    """The same memory as bytes: gloo does not know every type."""
    return x.detach().reshape(-1).view(torch.uint8)


def overlap(first: Range, second: Range) -> Range:
    """Rows that both hold."""
    start, stop = max(first[0], second[0]), min(first[1], second[1])
    return (start, stop) if start < stop else (start, start)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Turns what torch raises when another rank is gone into a `RankError`."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(_lost(error)) from error


@contextlib.contextmanager
def noticing_lost_ranks() -> Iterator[None]:
    """The same around work that communicates within: only what torch raises of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and _GLOO not in str(error):
            raise
        raise RankError(_lost(error)) from error


_GLOO = "gloo/transport"  # gloo raises no class of its own, but says where it failed


def _lost(error: RuntimeError) -> str:
    return f"another rank of this run died or no longer answers: {str(error).splitlines()[0]}"
