"""Carries out what was written down: the walk through the schedule with tensors."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.arithmetic import Arithmetic
from maisi.splitting.cpu.arithmetic import arithmetic_on
from maisi.splitting.cpu.heap import freed_slabs
from maisi.splitting.cpu.weights import kept_weights
from maisi.splitting.fuse import fuse
from maisi.splitting.graph import Leaf, Node, Summary
from maisi.splitting.interpret import Rows, SplitSettings, StepWalk, Walked, carry_out
from maisi.splitting.layout import Range
from maisi.splitting.schedule import Schedule, Sweep, Target, demands, make_schedule, make_steps
from maisi.splitting.shares import Shares
from maisi.splitting.store import DiskStore, HostStore, MemoryStore, Store, run_folder


@contextlib.contextmanager
def kept_between_calls() -> Iterator[None]:
    """Within, work without a plan keeps the memory of freed slabs and transformed weights from call to call.

    For a loop that calls the same networks again and again, whose weights do not change meanwhile.
    """
    with freed_slabs(kept=True), kept_weights():
        yield


def evaluate(outputs: Sequence[Node], settings: SplitSettings) -> list[Tensor]:
    """The dense tensors of the outputs; on ranks, every rank gets all of them."""
    fused = fuse(outputs)
    schedule = make_schedule(fused, settings.recompute)
    with contextlib.ExitStack() as stack:
        arithmetic = arithmetic_on(device_of(schedule))
        stack.enter_context(freed_slabs(kept=settings.step_bytes is None))
        folder = stack.enter_context(run_folder(settings.folder)) if settings.on_disk else None
        run = Execution(schedule, settings, arithmetic, folder)
        stack.callback(run.close)
        if settings.ranks is not None:
            stack.enter_context(together(settings.ranks, run.device))
        carry_out(schedule, settings, run)
        found = {node: run.result(node) for node in dict.fromkeys(fused)}
        return [found[node] for node in fused]


@contextlib.contextmanager
def together(ranks: Shares, device: torch.device) -> Iterator[None]:
    """A run on a device in which a rank that fails makes the others fail too, at once."""
    ranks.begin(device)
    try:
        yield
    except BaseException:
        ranks.abort()
        raise


class Execution:
    """The back end that computes: stores, summaries and rows of the results."""

    def __init__(
        self, schedule: Schedule, settings: SplitSettings, arithmetic: Arithmetic, folder: Path | None
    ) -> None:
        self.schedule, self.settings, self.arithmetic, self.folder = schedule, settings, arithmetic, folder
        self.device = device_of(schedule)
        self.stores: dict[Node, Store] = {}
        self.parts: dict[Summary, list[Any]] = {}
        self.summaries: dict[Summary, Any] = {}
        self.results: dict[Node, list[Tensor]] = {}
        self.dense: dict[Node, Tensor] = {}
        self.halos: dict[Node, MemoryStore] = {}  # rows of other ranks, for one sweep

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    def begin(self, sweep: Sweep, borders: Sequence[int]) -> None:
        if self.settings.ranks is not None:
            self._exchange(sweep, self.settings.ranks)
        self.parts = {summary: [] for target in sweep.targets for summary in target.summaries}

    def walked(self, sweep: Sweep, borders: Sequence[int], walk: StepWalk) -> Walked:
        for step, following in make_steps(sweep, borders):
            yield step, walk(step, following)

    def summary(self, source: Summary) -> Any:
        return self.summaries[source]

    def read(self, source: Node, rows: Range, in_pieces: bool) -> Tensor | list[Tensor]:
        if isinstance(source, Leaf):
            pieces = [source.layout.take(source.dense, *rows)]
        else:
            pieces = self._pieces(source, *rows) or [self._no_rows(source)]
        return pieces if in_pieces else source.layout.join(pieces)

    def _no_rows(self, source: Node) -> Tensor:
        return torch.empty(source.layout.local_shape(0), dtype=source.dtype, device=self.device)

    def _pieces(self, source: Node, start: int, stop: int) -> list[Tensor]:
        if source not in self.halos or self.settings.ranks is None:
            return self.stores[source].pieces(start, stop)
        own_start, own_stop = self.settings.ranks.owned(source.cuts)
        halo = self.halos[source]
        low, high = min(max(start, own_start), own_stop), max(min(stop, own_stop), own_start)
        own = self.stores[source].pieces(low, high) if low < high else []
        return [*halo.pieces(start, min(stop, own_start)), *own, *halo.pieces(max(start, own_stop), stop)]

    def take(self, source: Node, at_hand: Rows, rows: Range) -> Tensor:
        return source.layout.take(at_hand.value, *rows, at_hand.low)

    def compute(
        self,
        node: Node,
        inputs: Sequence[Any],
        rows: Range,
        owned: Sequence[bool],
        alive: Mapping[Node, Rows],
        ending: Sequence[Node],
    ) -> Tensor:
        return node.compute(inputs, *rows, owned, self.arithmetic)

    def join(
        self, node: Node, before: Rows, rows: tuple[int, int, int], value: Tensor, alive: Mapping[Node, Rows]
    ) -> Tensor:
        return node.layout.join([self.take(node, before, rows[:2]), value])

    def keep(self, node: Node, at_hand: Rows, rows: Range) -> Tensor:
        tail = self.take(node, at_hand, rows)
        return tail if torch.is_grad_enabled() else tail.clone()

    def end_step(self, alive: Mapping[Node, Rows], targets: Mapping[Node, Tensor]) -> None:
        return None

    def deliver(self, target: Target, rows: Range, slabs: Mapping[Node, Tensor]) -> None:
        slab = slabs[target.node]
        for summary in target.summaries:
            self.parts[summary].append(summary.of_slab(slab, self.arithmetic))
        if target.store:
            self._store(target.node).put(*rows, compact(slab))
        if target.output:
            self._keep_result(target.node, slab, rows)

    def _store(self, node: Node) -> Store:
        if node not in self.stores:
            key = self.schedule.keys[node]
            if key in self.settings.on_disk and self.folder is not None:
                self.stores[node] = DiskStore(self.folder, f"{node.number}", node.layout, node.dtype, self.device)
            elif key in self.settings.on_host:
                self.stores[node] = HostStore(node.layout, self.device)
            else:
                self.stores[node] = MemoryStore(node.layout)
        return self.stores[node]

    def _keep_result(self, node: Node, slab: Tensor, rows: Range) -> None:
        if torch.is_grad_enabled() or self.settings.ranks is not None or not node.layout.plain:
            self.results.setdefault(node, []).append(slab)
            return
        if node not in self.dense:
            self.dense[node] = torch.empty(node.layout.shape, dtype=slab.dtype, device=slab.device)
        node.layout.take(self.dense[node], *rows).copy_(slab)

    def drop_below(self, node: Node, row: int) -> None:
        if not torch.is_grad_enabled():
            self.stores[node].drop_below(row)

    def end(self, sweep: Sweep) -> None:
        self.arithmetic.end_sweep()
        for summary, contributions in self.parts.items():
            if self.settings.ranks is not None:
                contributions = self.settings.ranks.share(summary, contributions)
            self.summaries[summary] = summary.of_all(contributions)
        self.parts = {}

    def forget(self, node: Node) -> None:
        self.summaries.pop(node, None)  # type: ignore[call-overload]  # a summary or not
        if node in self.stores:
            self.stores.pop(node).close()

    def _exchange(self, sweep: Sweep, ranks: Shares) -> None:
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


def compact(slab: Tensor) -> Tensor:
    """The slab without memory that it does not use."""
    if torch.is_grad_enabled():
        return slab
    if slab.untyped_storage().nbytes() > slab.numel() * slab.element_size() * 5 // 4:
        return slab.clone()
    return slab


def device_of(schedule: Schedule) -> torch.device:
    """Where the inputs are."""
    return next(node.dense.device for node in schedule.nodes if isinstance(node, Leaf))
