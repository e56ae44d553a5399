"""Carries out a schedule: sweep by sweep, a step of rows at a time."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.cpu.filters import kept_filters
from maisi.splitting.cpu.heap import freed_slabs
from maisi.splitting.cpu.winograd import OUTPUTS
from maisi.splitting.graph import Leaf, Node, Normalised, Summary
from maisi.splitting.ranks import Ranks
from maisi.splitting.schedule import Schedule, Step, Sweep, demands, make_schedule, make_steps
from maisi.splitting.store import DiskStore, HostStore, MemoryStore, Store, run_folder


@dataclass(frozen=True)
class Settings:
    """How a split tensor is worked on; tensors are named by `Schedule.keys`."""

    step_bytes: int | None = None  # None: a step is a slab
    recompute: frozenset[str] = frozenset()
    on_disk: frozenset[str] = frozenset()
    on_host: frozenset[str] = frozenset()  # in the memory of the machine that a GPU sits in
    folder: Path | None = None
    ranks: Ranks | None = None


@contextlib.contextmanager
def kept_between_calls() -> Iterator[None]:
    """Within, work without a plan keeps the memory of freed slabs and transformed weights from call to call.

    For a loop that calls the same networks again and again, whose weights do not change meanwhile.
    """
    with freed_slabs(kept=True), kept_filters():
        yield


def evaluate(outputs: Sequence[Node], settings: Settings) -> list[Tensor]:
    """The dense tensors of the outputs; on ranks, every rank gets all of them."""
    schedule = make_schedule(outputs, settings.recompute)
    with contextlib.ExitStack() as stack:
        stack.enter_context(freed_slabs(kept=settings.step_bytes is None))
        folder = stack.enter_context(run_folder(settings.folder)) if settings.on_disk else None
        run = Execution(schedule, settings, folder)
        stack.callback(run.close)
        if settings.ranks is not None:
            stack.enter_context(together(settings.ranks))
        for i in range(len(schedule.sweeps)):
            run.sweep(i)
        return [run.result(node) for node in outputs]


@contextlib.contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """A run in which a rank that fails makes the others fail too, at once."""
    ranks.begin()
    try:
        yield
    except BaseException:
        ranks.abort()
        raise


class Execution:
    """State of one run: stores, summaries and rows of the results."""

    def __init__(self, schedule: Schedule, settings: Settings, folder: Path | None) -> None:
        self.schedule, self.settings, self.folder = schedule, settings, folder
        self.largest_slab = largest_slab(schedule)
        self.stores: dict[Node, Store] = {}
        self.summaries: dict[Node, Any] = {}
        self.results: dict[Node, list[Tensor]] = {}
        self.dense: dict[Node, Tensor] = {}
        self.halos: dict[Node, MemoryStore] = {}  # rows of other ranks, for one sweep

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    def sweep(self, index: int) -> None:
        sweep = self.schedule.sweeps[index]
        ranks = self.settings.ranks
        if ranks is not None:
            self._exchange(sweep, ranks)
        steps = make_steps(sweep, self.borders(sweep))
        parts: dict[Summary, list[Any]] = {s: [] for t in sweep.targets for s in t.summaries}
        kept: dict[Node, tuple[int, Tensor]] = {}
        for step, following in zip_longest(steps, steps[1:]):
            values = self._compute(sweep, step, kept, following)
            for target in sweep.targets:
                start, stop = step.demand[target.node]
                self._deliver(target.node, target, values, start, stop, parts)
            values.clear()
            self._free(sweep, index, step)
        for node in sweep.order:
            node.release()
        for summary, contributions in parts.items():
            self.summaries[summary] = self._summarise(summary, contributions)
        for node, last in self.schedule.last_read.items():
            if last == index and node in self.stores:
                self.stores.pop(node).close()

    def borders(self, sweep: Sweep) -> list[int]:
        """Rows at which the steps of this process begin and end."""
        cuts = sweep.cuts
        if self.settings.ranks is not None:
            first, last = self.settings.ranks.slabs(len(cuts) - 1)
            cuts = cuts[first : last + 1]
        if self.settings.step_bytes is None or cuts[0] == cuts[-1]:
            return slab_borders(sweep, cuts, self.largest_slab)
        return step_borders(sweep, cuts[0], cuts[-1], self.settings.step_bytes)

    def _compute(
        self, sweep: Sweep, step: Step, kept: dict[Node, tuple[int, Tensor]], following: Step | None
    ) -> dict[Node, tuple[int, Tensor]]:
        """Values of all nodes of a step that are still needed at its end, with their first row."""
        values: dict[Node, tuple[int, Tensor]] = {}
        fresh: set[Node] = set()
        last_use = {source: node for node in sweep.order for source in node.inputs}
        targets = {target.node for target in sweep.targets}
        for node in sweep.order:
            start, stop = step.compute[node]
            inputs: list[Any] = []
            owned: list[bool] = []
            for source, rows in zip(node.inputs, node.need(start, stop), strict=True):
                is_last = last_use[source] is node and source not in targets and source not in sweep.kept
                inputs.append(self._input(node, source, rows, values))
                owned.append(is_last and source in fresh)
                if is_last and node.inputs.count(source) == 1:
                    values.pop(source, None)
            value = node.compute(inputs, start, stop, owned)
            if not node.view or (all(owned) and all(len(readers(s, sweep)) == 1 for s in node.inputs)):
                fresh.add(node)
            del inputs
            low = step.demand[node][0] if node in step.demand else start
            if node in sweep.kept:
                value = self._joined_with_kept(node, low, start, value, kept, following, stop)
            values[node] = (low, value)
            for source in node.inputs:
                if last_use[source] is node and source not in targets:
                    values.pop(source, None)
        return values

    def _joined_with_kept(
        self,
        node: Node,
        low: int,
        start: int,
        value: Tensor,
        kept: dict[Node, tuple[int, Tensor]],
        following: Step | None,
        stop: int,
    ) -> Tensor:
        """The value with the rows that the step before left in front; leaves rows for the step that follows."""
        if node in kept and low < start:
            first, rows = kept[node]
            value = node.layout.join([node.layout.take(rows, low, start, first), value])
        kept.pop(node, None)
        if following is not None and node in following.demand:
            again = following.demand[node][0]
            if low <= again < stop:
                tail = node.layout.take(value, again, stop, low)
                kept[node] = (again, tail if torch.is_grad_enabled() else tail.clone())
        return value

    def _input(self, node: Node, source: Node, rows: tuple[int, int], values: dict[Node, tuple[int, Tensor]]) -> Any:
        if isinstance(source, Summary):
            return self.summaries[source]
        start, stop = rows
        if source in values:
            low, value = values[source]
            return source.layout.take(value, start, stop, low)
        pieces = self._read(source, start, stop)
        if isinstance(node, Normalised):
            return pieces
        return source.layout.join(pieces)

    def _read(self, source: Node, start: int, stop: int) -> list[Tensor]:
        if isinstance(source, Leaf):
            return [source.layout.take(source.dense, start, stop)]
        pieces = self._pieces(source, start, stop)
        if not pieces:
            shape = source.layout.local_shape(0)
            return [torch.empty(shape, dtype=source.dtype, device=self._device())]
        return pieces

    def _pieces(self, source: Node, start: int, stop: int) -> list[Tensor]:
        if source not in self.halos or self.settings.ranks is None:
            return self.stores[source].pieces(start, stop)
        own_start, own_stop = self.settings.ranks.owned(source.cuts)
        halo = self.halos[source]
        low, high = min(max(start, own_start), own_stop), max(min(stop, own_stop), own_start)
        own = self.stores[source].pieces(low, high) if low < high else []
        return [*halo.pieces(start, min(stop, own_start)), *own, *halo.pieces(max(start, own_stop), stop)]

    def _device(self) -> torch.device:
        return next(node.dense.device for node in self.schedule.nodes if isinstance(node, Leaf))

    def _deliver(
        self,
        node: Node,
        target: Any,
        values: dict[Node, tuple[int, Tensor]],
        start: int,
        stop: int,
        parts: dict[Summary, list[Any]],
    ) -> None:
        if node in values:
            low, value = values[node]
            slab = node.layout.take(value, start, stop, low)
        else:
            slab = node.layout.join(self._read(node, start, stop))
        for summary in target.summaries:
            parts[summary].append(summary.of_slab(slab))
        if target.store:
            self._store(node).put(start, stop, compact(slab))
        if target.output:
            self._keep_result(node, slab, start, stop)

    def _store(self, node: Node) -> Store:
        if node not in self.stores:
            key = self.schedule.keys[node]
            if key in self.settings.on_disk and self.folder is not None:
                self.stores[node] = DiskStore(self.folder, f"{node.number}", node.layout, node.dtype, self._device())
            elif key in self.settings.on_host:
                self.stores[node] = HostStore(node.layout, self._device())
            else:
                self.stores[node] = MemoryStore(node.layout)
        return self.stores[node]

    def _keep_result(self, node: Node, slab: Tensor, start: int, stop: int) -> None:
        if torch.is_grad_enabled() or self.settings.ranks is not None or not node.layout.plain:
            self.results.setdefault(node, []).append(slab)
            return
        if node not in self.dense:
            self.dense[node] = torch.empty(node.layout.shape, dtype=slab.dtype, device=slab.device)
        self.dense[node].narrow(node.layout.dim, start, stop - start).copy_(slab)

    def _free(self, sweep: Sweep, index: int, step: Step) -> None:
        """Drops rows of stored nodes that neither the rest of this sweep nor a later one reads."""
        if torch.is_grad_enabled():
            return
        for source in sweep.sources:
            if self.schedule.last_read.get(source) == index:
                self.stores[source].drop_below(step.floor[source])

    def _summarise(self, summary: Summary, contributions: list[Any]) -> Any:
        if self.settings.ranks is not None:
            contributions = self.settings.ranks.share(summary, contributions)
        return summary.of_all(contributions)

    def _exchange(self, sweep: Sweep, ranks: Ranks) -> None:
        """Fetches from other ranks the rows that this rank's part of a sweep reads beyond its own."""
        wanted = [demands(sweep, *ranks.owned(sweep.cuts, rank), {}).demand for rank in range(ranks.size)]
        self.halos = {}
        for source in sweep.sources:
            if isinstance(source, Leaf):
                continue
            spans = [step.get(source, (0, 0)) for step in wanted]

            def rows(start: int, stop: int, source: Node = source) -> Tensor:
                return source.layout.join(self._store(source).pieces(start, stop))

            self.halos[source] = ranks.exchange(source, rows, spans)

    def result(self, node: Node) -> Tensor:
        if node in self.dense:
            return self.dense.pop(node)
        slabs = self.results.pop(node, [])
        if self.settings.ranks is not None:
            slabs = self.settings.ranks.gather(node, slabs, replicated=True)
        return node.layout.join(slabs)


def readers(source: Node, sweep: Sweep) -> list[Node]:
    """Nodes of a sweep that read another."""
    return [node for node in sweep.order if source in node.inputs]


def compact(slab: Tensor) -> Tensor:
    """The slab without memory that it does not use."""
    if torch.is_grad_enabled():
        return slab
    if slab.untyped_storage().nbytes() > slab.numel() * slab.element_size() * 5 // 4:
        return slab.clone()
    return slab


def largest_slab(schedule: Schedule) -> float:
    """Bytes of the largest slab of any value."""
    return max(
        sweep.row_bytes() * max(stop - start for start, stop in pairwise(sweep.cuts)) for sweep in schedule.sweeps
    )


def slab_borders(sweep: Sweep, cuts: Sequence[int], most_bytes: float) -> list[int]:
    """Steps of a slab each, or of several where they are together no larger than the largest slab elsewhere."""
    borders = [cuts[0]]
    for start, stop in pairwise(sorted(set(cuts))):
        if len(borders) > 1 and (stop - borders[-2]) * sweep.row_bytes() <= most_bytes:
            borders[-1] = stop
        else:
            assert start == borders[-1]
            borders.append(stop)
    return borders


def step_borders(sweep: Sweep, start: int, stop: int, step_bytes: int) -> list[int]:
    """Even steps of which no value is larger than `step_bytes`, or single rows; whole tiles of rows where possible."""
    rows = max(1, int(step_bytes / max(sweep.row_bytes(), 1)))
    unit = OUTPUTS if rows >= OUTPUTS else 1
    units = -(-(stop - start) // unit)
    count = max(1, -(-units // (rows // unit)))
    return [min(start + unit * (units * i // count), stop) for i in range(count + 1)]
