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
from maisi.splitting.interpret import SplitSettings
from maisi.splitting.ops import mapped, walk
from maisi.splitting.predict import Forecast, Usage
from maisi.splitting.ranks import Ranks
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
MOST_SEARCHES = 8  # for the smallest peak
DESCENT = 0.6  # of the smallest peak so far, that the next search aims at
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

    def settings(self) -> SplitSettings:
        """The plan as the executor reads it."""
        return SplitSettings(
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
        forecast = Forecast([value.node for value in walk(network(x)) if isinstance(value, SlabTensor)])
    limit = limit_of(budget)
    settings = search(forecast, places, limit).fastest
    if settings is None:
        settings = smallest(forecast, places)
        peak = forecast.usage(settings).peak_bytes
        if peak > limit:
            return None, peak
    plan = describe(forecast, settings, shape, dtype, axis, budget)
    return plan, plan.peak_bytes


@dataclass
class Found:
    """What a search came to: the least time within its limit, if any, and the smallest peak."""

    fastest: SplitSettings | None = None
    smallest: SplitSettings | None = None
    seconds: float = math.inf
    peak: float = math.inf

    def note(self, settings: SplitSettings, usage: Usage, seconds: float, limit: float) -> bool:
        """True where the settings are within the limit."""
        if usage.peak_bytes < self.peak:
            self.smallest, self.peak = settings, usage.peak_bytes
        if usage.peak_bytes > limit:
            return False
        if seconds < self.seconds:
            self.fastest, self.seconds = settings, seconds
        return True


def search(forecast: Forecast, places: Places, limit: float) -> Found:
    """Moves tensors one by one, and tries the largest step within the limit each time, until steps are large enough."""
    found = Found()
    sizes = step_sizes(limit)
    move_step = next((size for size in sizes if size * 64 <= limit), MOVE_STEP_BYTES)
    move_step = max(move_step, MOVE_STEP_BYTES)
    for aim in AIMS:
        settings = SplitSettings(sizes[0], folder=places.folder)
        for _ in range(MAX_MOVES):
            largest = None
            for step_bytes in sizes:
                settings = replace(settings, step_bytes=step_bytes)
                usage = forecast.usage(settings)
                if found.note(settings, usage, places.seconds(usage), limit):
                    largest = step_bytes
                    break
            if largest is not None and largest >= move_step:
                break
            moved = best_move(forecast, replace(settings, step_bytes=move_step), places, limit * aim)
            if moved is None:
                break
            settings = moved
        if found.fastest is not None:
            break
    return found


def smallest(forecast: Forecast, places: Places) -> SplitSettings:
    """The settings of the smallest peak, whatever the time; no budget leads the searches, so all end in the same."""
    best = SplitSettings(LEAST_STEP_BYTES, folder=places.folder)
    least: float = forecast.usage(best).peak_bytes
    for _ in range(MOST_SEARCHES):
        found = search(forecast, places, DESCENT * least)
        if found.smallest is None or found.peak >= least:
            break
        best, least = found.smallest, found.peak
    return best


def step_sizes(limit: float) -> list[int]:
    """Sizes of a step to try, the largest first: a small part of the memory, but not smaller than pays."""
    largest = USUAL_STEP_BYTES
    while largest * MOST_STEPS_HELD <= limit and largest < MOST_STEP_BYTES and limit != float("inf"):
        largest *= 2
    return [largest >> shift for shift in range(20) if largest >> shift >= LEAST_STEP_BYTES]


def best_move(forecast: Forecast, settings: SplitSettings, places: Places, limit: float) -> SplitSettings | None:
    """The settings with one more tensor kept elsewhere or computed again that lowers the peaks for the least time."""
    before = forecast.usage(settings)
    best, best_cost = None, float("inf")
    for name in before.alive:
        moves = [replace(settings, recompute=settings.recompute | {name})]
        if places.folder is not None:
            moves.append(replace(settings, on_disk=settings.on_disk | {name}))
        if places.host_bytes:
            moves.append(replace(settings, on_host=settings.on_host | {name}))
        for move in moves:
            after = forecast.usage(move)
            gain = before.excess(limit) - after.excess(limit)
            cost = (places.seconds(after) - places.seconds(before)) / max(gain, 1)
            if gain > abs(limit) / 500 and cost < best_cost and after.host_bytes <= (places.host_bytes or 0):
                best, best_cost = move, cost
    return best


def describe(
    forecast: Forecast,
    settings: SplitSettings,
    shape: Sequence[int],
    dtype: torch.dtype,
    axis: int,
    budget: int | None,
) -> MemoryPlan:
    """The plan as data."""
    schedule, usage = forecast.schedule(settings), forecast.usage(settings)
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
        unsplit_flops=forecast.usage(SplitSettings()).flops,
        tensors=tuple(tensors),
        folder=settings.folder if settings.on_disk else None,
    )
