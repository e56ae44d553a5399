"""Choosing how to split: axis, size of a step, what is stored where and what is computed again, for a memory budget.

Nothing is computed while planning: the network writes its operations down on tensors without data, and a walk through
the schedule counts the bytes that carrying it out will hold.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from maisi.errors import InvalidPlanError
from maisi.shapes import Frozen
from maisi.splitting.execute import Settings
from maisi.splitting.graph import Node
from maisi.splitting.meter import Usage, predict
from maisi.splitting.ops import mapped, walk
from maisi.splitting.ranks import Ranks
from maisi.splitting.schedule import make_schedule
from maisi.splitting.slabs import SlabTensor, gather

logger = logging.getLogger(__name__)

LEAST_STEP_BYTES, MOST_STEP_BYTES = 2 << 20, 1 << 30
USUAL_STEP_BYTES = 128 << 20  # larger ones are no faster, unless a row is so large that few fit
MOST_STEPS_HELD = 24  # a larger budget allows larger steps
FLOPS_PER_SECOND = 2e11  # of two CPU cores; only the ratio to the disk matters for the choice
DISK_BYTES_PER_SECOND = 1e9
GPU_FLOPS_PER_SECOND, HOST_BYTES_PER_SECOND = 2e13, 6e9  # of a GPU, and between it and its host's unpinned memory
SECONDS_PER_STEP = 2e-3
MOVE_STEP_BYTES = 16 << 20  # below this a tensor goes elsewhere before steps get smaller
MAX_MOVES = 24  # stored tensors that a plan may put on disk or compute again
AIMS = (1.0, 0.6, 0.3)  # moves are chosen one by one; aiming lower finds combinations that aiming at the budget misses
MOST_MOVES = 2 * MAX_MOVES  # where the smallest peak is looked for
DESCENT = 0.9  # of the peak, that a move towards the smallest one aims at
SAFETY_BYTES = 12 << 20
SAFETY = 1.05  # allocators round up and fragment


class StoredTensor(Frozen):
    """One tensor between two passes over the rows."""

    name: str
    num_bytes: int
    place: str  # "memory" (the device's), "host", "disk" or "recomputed"


class MemoryPlan(Frozen):
    """How to split one network on one shape; predicted bytes are above the weights and the input."""

    shape: tuple[int, ...]
    dtype: str
    axis: int
    parts: int = Field(ge=1)  # steps over the rows where the tensors are largest
    step_bytes: int = Field(ge=1)
    budget_bytes: int | None
    peak_bytes: int
    disk_bytes: int
    host_bytes: int
    flops: int
    unsplit_flops: int
    tensors: tuple[StoredTensor, ...]
    folder: Path | None = None

    @property
    def overhead(self) -> float:
        """Extra floating point operations relative to an unsplit pass."""
        return self.flops / max(self.unsplit_flops, 1) - 1

    def settings(self) -> Settings:
        """The plan as the executor reads it."""
        return Settings(
            step_bytes=self.step_bytes,
            recompute=frozenset(t.name for t in self.tensors if t.place == "recomputed"),
            on_disk=frozenset(t.name for t in self.tensors if t.place == "disk"),
            on_host=frozenset(t.name for t in self.tensors if t.place == "host"),
            folder=self.folder,
        )

    def split(self, x: Tensor, ranks: Ranks | None = None) -> SlabTensor:
        """The tensor split as planned, over ranks if any. Raises `InvalidPlanError` for another shape or dtype."""
        got = (tuple(x.shape), str(x.dtype).removeprefix("torch."))
        if got != (self.shape, self.dtype):
            raise InvalidPlanError(f"the plan is for {self.shape} {self.dtype}, got {got[0]} {got[1]}; plan anew")
        return SlabTensor.split(x, axis=self.axis, ranks=ranks, settings=self.settings())


def run_split(
    network: Callable[[Any], Any], x: Tensor, plan: MemoryPlan | None = None, ranks: Ranks | None = None
) -> Any:
    """The network's result on `x`, carried out as planned; tuples and lists of results are gathered together.

    Without a plan each rank works on one slab; a process alone works on one slab that is all of `x`.
    """
    result = network(SlabTensor.split(x, ranks=ranks) if plan is None else plan.split(x, ranks))
    slabs = [value for value in walk(result) if isinstance(value, SlabTensor)]
    dense = dict(zip(map(id, slabs), gather(*slabs), strict=True)) if slabs else {}
    return mapped(lambda value: dense.get(id(value), value), result)


def plan_memory(
    network: Callable[[Any], Any],
    shape: Sequence[int],
    budget_bytes: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    axis: int | None = None,
    folder: Path | None = None,
    host_bytes: int | None = None,
) -> MemoryPlan:
    """The fastest plan for `network(x)`, x of that shape, whose peak above weights and input is within the budget.

    `network` may have its weights on any device, "meta" included. Tensors are kept on disk only where a `folder` is
    given, and in the memory of a GPU's host only where `host_bytes` of it may be taken. Raises `InvalidPlanError` with
    the least budget that would do; asked for again, exactly that one does.
    """
    places = Places(folder, host_bytes)
    least = math.inf
    for candidate in [axis] if axis is not None else longest_first(shape[2:]):
        plan, peak = plan_axis(network, shape, budget_bytes, dtype, candidate, places)
        if plan is not None:
            return plan
        least = min(least, peak)
    budget = budget_for(int(least))
    raise InvalidPlanError(
        f"{budget_bytes:,} bytes are too few for an input of shape {tuple(shape)}; at least {budget:,} are needed"
        + ("" if folder is not None else "; a folder to keep tensors on disk may lower that"),
        budget,
    )


def limit_of(budget: int | None) -> float:
    """The predicted peak that a budget allows."""
    return math.inf if budget is None else budget / SAFETY - SAFETY_BYTES


def budget_for(peak_bytes: int) -> int:
    """The least budget that allows a predicted peak."""
    budget = math.ceil((peak_bytes + SAFETY_BYTES) * SAFETY)
    while limit_of(budget - 1) >= peak_bytes:
        budget -= 1
    while limit_of(budget) < peak_bytes:
        budget += 1
    return budget


@dataclass(frozen=True)
class Places:
    """Where tensors may go besides the memory that is planned for."""

    folder: Path | None = None
    host_bytes: int | None = None  # where networks are on a GPU

    def seconds(self, usage: Usage) -> float:
        """A rough time of the work, for choosing between keeping elsewhere and computing again."""
        compute = usage.flops / (FLOPS_PER_SECOND if self.host_bytes is None else GPU_FLOPS_PER_SECOND)
        disk, host = usage.traffic_bytes / DISK_BYTES_PER_SECOND, usage.host_traffic_bytes / HOST_BYTES_PER_SECOND
        return compute + disk + host + usage.num_steps * SECONDS_PER_STEP


def longest_first(size: Sequence[int]) -> list[int]:
    """Axes in the order to try: the first lies best in memory unless another is much longer."""
    by_length = sorted(range(len(size)), key=lambda axis: (-size[axis], axis))
    first = 0 if 2 * size[0] > size[by_length[0]] else by_length[0]
    return [first, *(axis for axis in by_length if axis != first)]


def plan_axis(
    network: Callable[[Any], Any],
    shape: Sequence[int],
    budget: int | None,
    dtype: torch.dtype,
    axis: int,
    places: Places,
) -> tuple[MemoryPlan | None, int]:
    """The fastest plan along one axis that was found, or none; and its peak, or the smallest that any plan has."""
    with torch.no_grad():
        x = SlabTensor.split(torch.empty(tuple(shape), dtype=dtype, device="meta"), axis=axis)
        outputs = [value.node for value in walk(network(x)) if isinstance(value, SlabTensor)]
    limit = limit_of(budget)
    settings = fastest(outputs, places, limit)
    if settings is None:
        settings = smallest(outputs, places)
        peak = predict(outputs, settings).peak_bytes
        if peak > limit:
            return None, peak
    plan = describe(outputs, settings, shape, dtype, axis, budget)
    return plan, plan.peak_bytes


def fastest(outputs: list[Node], places: Places, limit: float) -> Settings | None:
    """The settings of the least time within a limit among those that a search comes to, if any are."""
    feasible: list[tuple[float, Settings]] = []
    sizes = step_sizes(limit)
    move_step = next((size for size in sizes if size * 64 <= limit), MOVE_STEP_BYTES)
    move_step = max(move_step, MOVE_STEP_BYTES)
    for aim in AIMS:
        settings = Settings(sizes[0], folder=places.folder)
        for _ in range(MAX_MOVES):
            for step_bytes in sizes:
                settings = replace(settings, step_bytes=step_bytes)
                usage = predict(outputs, settings)
                if usage.peak_bytes <= limit:
                    feasible.append((places.seconds(usage), settings))
                    break
            if feasible and (feasible[-1][1].step_bytes or 0) >= move_step:
                break
            moved = best_move(outputs, replace(settings, step_bytes=move_step), places, limit * aim)
            if moved is None:
                break
            settings = moved
        if feasible:
            break
    return min(feasible, key=lambda entry: entry[0])[1] if feasible else None


def smallest(outputs: list[Node], places: Places) -> Settings:
    """The settings of the smallest peak, whatever the time: a search that no budget leads, so it ends where it did."""
    settings = Settings(LEAST_STEP_BYTES, folder=places.folder)
    best, least = settings, predict(outputs, settings).peak_bytes
    for _ in range(MOST_MOVES):
        moved = best_move(outputs, settings, places, DESCENT * predict(outputs, settings).peak_bytes)
        if moved is None:
            break
        settings = moved
        peak = predict(outputs, settings).peak_bytes
        if peak < least:
            best, least = settings, peak
    return best


def step_sizes(limit: float) -> list[int]:
    """Sizes of a step to try, the largest first: a small part of the memory, but not smaller than pays."""
    largest = USUAL_STEP_BYTES
    while largest * MOST_STEPS_HELD <= limit and largest < MOST_STEP_BYTES and limit != float("inf"):
        largest *= 2
    return [largest >> shift for shift in range(20) if largest >> shift >= LEAST_STEP_BYTES]


def best_move(outputs: list[Node], settings: Settings, places: Places, limit: float) -> Settings | None:
    """The settings with one more tensor kept elsewhere or computed again that lowers the peaks for the least time."""
    before = predict(outputs, settings)
    best, best_cost = None, float("inf")
    for name in before.alive:
        moves = [replace(settings, recompute=settings.recompute | {name})]
        if places.folder is not None:
            moves.append(replace(settings, on_disk=settings.on_disk | {name}))
        if places.host_bytes:
            moves.append(replace(settings, on_host=settings.on_host | {name}))
        for move in moves:
            after = predict(outputs, move)
            gain = before.excess(limit) - after.excess(limit)
            cost = (places.seconds(after) - places.seconds(before)) / max(gain, 1)
            if gain > abs(limit) / 500 and cost < best_cost and after.host_bytes <= (places.host_bytes or 0):
                best, best_cost = move, cost
    return best


def describe(
    outputs: list[Node],
    settings: Settings,
    shape: Sequence[int],
    dtype: torch.dtype,
    axis: int,
    budget: int | None,
) -> MemoryPlan:
    """The plan as data."""
    schedule, usage = make_schedule(outputs, settings.recompute), predict(outputs, settings)
    tensors = []
    for node, name in schedule.keys.items():
        recomputed = name in settings.recompute
        if node in schedule.stored or recomputed:
            kept = "disk" if name in settings.on_disk else "host" if name in settings.on_host else "memory"
            place = "recomputed" if recomputed else kept
            size = node.row_bytes * node.rows
            tensors.append(StoredTensor(name=name, num_bytes=size, place=place))
    assert settings.step_bytes is not None
    return MemoryPlan(
        shape=tuple(shape),
        dtype=str(dtype).removeprefix("torch."),
        axis=axis,
        parts=usage.largest_sweep_steps,
        step_bytes=settings.step_bytes,
        budget_bytes=budget,
        peak_bytes=usage.peak_bytes,
        disk_bytes=usage.disk_bytes,
        host_bytes=usage.host_bytes,
        flops=usage.flops,
        unsplit_flops=predict(outputs, Settings()).flops,
        tensors=tuple(tensors),
        folder=settings.folder if settings.on_disk else None,
    )
