"""The walk through a schedule: sweep by sweep, a step of rows at a time, and what is alive meanwhile.

There is one walk. What a value is, is its back end's to say: `execute` gives tensors, `predict` numbers of bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from maisi.splitting.arithmetic import Arithmetic
from maisi.splitting.graph import Node, Summary
from maisi.splitting.layout import Range
from maisi.splitting.schedule import Schedule, Step, Sweep, Target
from maisi.splitting.shares import Shares

V = TypeVar("V")


@dataclass(frozen=True)
class SplitSettings:
    """How a split tensor is worked on; tensors are named by `Schedule.keys`."""

    step_bytes: int | None = None  # None: a step is a slab
    recompute: frozenset[str] = frozenset()
    on_disk: frozenset[str] = frozenset()
    on_host: frozenset[str] = frozenset()  # in the memory of the machine that a GPU sits in
    folder: Path | None = None
    ranks: Shares | None = None


class Rows(NamedTuple):
    """Rows of a node that are at hand, from row `low` on."""

    low: int
    value: Any


Walked = Iterator[tuple[Step, Mapping[Node, Any]]]  # the steps of a sweep, with the rows of its targets


class Backend(Protocol[V]):
    """What becomes of the values of a walk."""

    arithmetic: Arithmetic

    def begin(self, sweep: Sweep, borders: Sequence[int]) -> None:
        """A sweep begins, in steps between these borders."""

    def walked(self, sweep: Sweep, borders: Sequence[int], walk: "StepWalk") -> Walked:
        """The steps of a sweep, walked through one after the other, or remembered of one that was like it."""

    def summary(self, source: Summary) -> Any:
        """The value of all rows."""

    def read(self, source: Node, rows: Range, in_pieces: bool) -> V:
        """Rows that are stored or were there from the start, joined unless pieces will do."""

    def take(self, source: Node, at_hand: Rows, rows: Range) -> V:
        """Some of the rows at hand."""

    def compute(
        self,
        node: Node,
        inputs: Sequence[Any],
        rows: Range,
        owned: Sequence[bool],
        alive: Mapping[Node, Rows],
        ending: Sequence[Node],
    ) -> V:
        """Rows of a node; `owned` inputs may be overwritten, and those of the inputs `ending` are read no more."""

    def join(self, node: Node, before: Rows, rows: tuple[int, int, int], value: V, alive: Mapping[Node, Rows]) -> V:
        """A value of rows `rows[1]` to `rows[2]` with those from `rows[0]` on in front, which the step before left."""

    def keep(self, node: Node, at_hand: Rows, rows: Range) -> V:
        """Some of the rows at hand, for the next step."""

    def end_step(self, alive: Mapping[Node, Rows], targets: Mapping[Node, V]) -> None:
        """All of a step is there."""

    def deliver(self, target: Target, rows: Range, slabs: Mapping[Node, V]) -> None:
        """Stores, summarises or gives out the rows of a target."""

    def drop_below(self, node: Node, row: int) -> None:
        """Rows of a stored node before this one are read no more."""

    def end(self, sweep: Sweep) -> None:
        """A sweep ends; its summaries are complete."""

    def forget(self, node: Node) -> None:
        """A stored node or a summary is read no more."""


def carry_out(schedule: Schedule, settings: SplitSettings, backend: Backend) -> None:
    """Walks through a schedule."""
    largest = largest_slab(schedule)
    for index, sweep in enumerate(schedule.sweeps):
        borders = borders_of(sweep, settings, largest, backend.arithmetic.row_unit)
        backend.begin(sweep, borders)
        for step, slabs in backend.walked(sweep, borders, StepWalk(sweep, backend)):
            for target in sweep.targets:
                backend.deliver(target, step.demand[target.node], slabs)
            del slabs
            for source in sweep.sources:
                if schedule.last_read.get(source) == index:
                    backend.drop_below(source, step.floor[source])
        backend.end(sweep)
        for node, last in schedule.last_read.items():
            if last == index:
                backend.forget(node)


class StepWalk:
    """The walk through the nodes of a sweep, for one step after the other."""

    def __init__(self, sweep: Sweep, backend: Backend) -> None:
        self.sweep, self.backend = sweep, backend
        self.last_use = {source: node for node in sweep.order for source in node.inputs}
        self.num_readers = {source: sum(source in n.inputs for n in sweep.order) for source in self.last_use}
        self.lasting = {target.node for target in sweep.targets}
        self.kept: dict[Node, Rows] = {}  # what a step leaves for the next one

    def __call__(self, step: Step, following: Step | None) -> dict[Node, Any]:
        """Rows of the targets."""
        alive: dict[Node, Rows] = {}
        fresh: set[Node] = set()  # whose memory is nobody else's
        for node in self.sweep.order:
            alive[node] = self._rows(node, step, alive, fresh, following)
        slabs = {}
        for node in dict.fromkeys(target.node for target in self.sweep.targets):
            rows = step.demand[node]
            at_hand = alive.get(node)
            slabs[node] = self._read(node, rows) if at_hand is None else self.backend.take(node, at_hand, rows)
        self.backend.end_step(alive, slabs)
        return slabs

    def _rows(
        self,
        node: Node,
        step: Step,
        alive: dict[Node, Rows],
        fresh: set[Node],
        following: Step | None,
    ) -> Rows:
        """Rows of one node, after which what is read no more is no longer alive."""
        start, stop = step.compute[node]
        inputs, owned = [], []
        for source, rows in zip(node.inputs, node.need(start, stop), strict=True):
            inputs.append(self._input(node, source, rows, alive))
            owned.append(self._ends(source, node) and source not in self.sweep.kept and source in fresh)
        ending = [source for source in node.inputs if self.last_use[source] is node]
        value = self.backend.compute(node, inputs, (start, stop), owned, alive, ending)
        del inputs
        for source in ending:
            if source not in self.lasting:
                alive.pop(source, None)
        if not node.view or (all(owned) and all(self.num_readers[source] == 1 for source in node.inputs)):
            fresh.add(node)
        low = step.demand[node][0] if node in step.demand else start
        if node in self.sweep.kept:
            if node in self.kept and low < start:
                value = self.backend.join(node, self.kept[node], (low, start, stop), value, alive)
            self._leave(node, Rows(low, value), stop, following)
        return Rows(low, value)

    def _ends(self, source: Node, node: Node) -> bool:
        """True where nobody needs an input afterwards."""
        return self.last_use[source] is node and source not in self.lasting

    def _input(self, node: Node, source: Node, rows: Range, alive: Mapping[Node, Rows]) -> Any:
        if isinstance(source, Summary):
            return self.backend.summary(source)
        if source in alive:
            return self.backend.take(source, alive[source], rows)
        return self._read(source, rows, node.reads_pieces)

    def _read(self, source: Node, rows: Range, in_pieces: bool = False) -> Any:
        return self.backend.read(source, rows, in_pieces)

    def _leave(self, node: Node, at_hand: Rows, stop: int, following: Step | None) -> None:
        """Leaves the rows that the step which follows reads again."""
        self.kept.pop(node, None)
        if following is not None and node in following.demand:
            again = following.demand[node][0]
            if at_hand.low <= again < stop:
                self.kept[node] = Rows(again, self.backend.keep(node, at_hand, (again, stop)))


def borders_of(sweep: Sweep, settings: SplitSettings, largest: float, unit: int) -> list[int]:
    """Rows at which the steps of this process begin and end, in multiples of `unit` where they can be."""
    cuts = sweep.cuts
    if settings.ranks is not None:
        first, last = settings.ranks.slabs(len(cuts) - 1)
        cuts = cuts[first : last + 1]
    if settings.step_bytes is None or cuts[0] == cuts[-1]:
        return slab_borders(sweep, cuts, largest)
    return step_borders(sweep, cuts[0], cuts[-1], settings.step_bytes, unit)


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


def step_borders(sweep: Sweep, start: int, stop: int, step_bytes: int, tile: int) -> list[int]:
    """Even steps of which no value is larger than `step_bytes`, or single rows; whole tiles of rows where possible."""
    rows = max(1, int(step_bytes / max(sweep.row_bytes(), 1)))
    unit = tile if rows >= tile else 1
    units = -(-(stop - start) // unit)
    count = max(1, -(-units // (rows // unit)))
    return [min(start + unit * (units * i // count), stop) for i in range(count + 1)]
