"""Predicts what a schedule will hold in memory at once: the walk through it with numbers of bytes."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from maisi.splitting.arithmetic import Arithmetic
from maisi.splitting.cpu.arithmetic import CpuArithmetic
from maisi.splitting.fuse import fuse
from maisi.splitting.graph import Leaf, Node, Summary, Whole
from maisi.splitting.interpret import Rows, SplitSettings, StepWalk, Walked, carry_out
from maisi.splitting.layout import Range
from maisi.splitting.schedule import Schedule, Step, Sweep, Target, make_schedule, make_steps

FIXED_BYTES = 4 << 20  # what libraries take on their first use


@dataclass
class Usage:
    """Peak memory in bytes above the input and the weights, where it occurs, and what the work costs."""

    peak_bytes: int = FIXED_BYTES
    peak_sweep: int = 0
    flops: int = 0
    disk_bytes: int = 0  # size of what is kept on disk
    traffic_bytes: int = 0  # written to and read from disk
    host_bytes: int = 0  # size of what is kept in the host's memory
    host_traffic_bytes: int = 0  # copied to and from the host
    sweep_peaks: dict[int, int] = field(default_factory=dict)
    num_steps: int = 0
    largest_sweep_steps: int = 0
    alive: list[str] = field(default_factory=list)  # keys of nodes stored in memory during the peak

    def excess(self, limit: float) -> float:
        """How far all sweeps together are above a limit."""
        return sum(max(0.0, peak - limit) for peak in self.sweep_peaks.values())


@dataclass
class StepCost:
    """What one step takes: the most bytes of values alive at once, and of rows kept for the next one."""

    working: int = 0
    kept: int = 0
    flops: int = 0
    traffic: int = 0
    host_traffic: int = 0


Known = dict[Hashable, list[tuple[Step, StepCost]]]  # sweeps that were walked through before


class Forecast:
    """What carrying out some outputs takes, for any settings; a sweep that settings leave as it was is walked once."""

    def __init__(self, outputs: Sequence[Node]) -> None:
        self.outputs = fuse(outputs)
        self._known: Known = {}
        self._schedules: dict[frozenset[str], Schedule] = {}
        self._usages: dict[SplitSettings, Usage] = {}

    def schedule(self, settings: SplitSettings) -> Schedule:
        """The sweeps that these settings lead to."""
        if settings.recompute not in self._schedules:
            self._schedules[settings.recompute] = make_schedule(self.outputs, settings.recompute)
        return self._schedules[settings.recompute]

    def usage(self, settings: SplitSettings) -> Usage:
        """What carrying out the outputs with these settings will take."""
        if settings not in self._usages:
            schedule = self.schedule(settings)
            count = Count(schedule, settings, self._known)
            carry_out(schedule, settings, count)
            self._usages[settings] = count.usage
        return self._usages[settings]


class Count:
    """The back end that counts: a value is the number of bytes that `execute.Execution` would hold for it."""

    def __init__(self, schedule: Schedule, settings: SplitSettings, known: Known) -> None:
        self.schedule, self.settings, self.known = schedule, settings, known
        self.arithmetic: Arithmetic = CpuArithmetic()  # also an estimate of what others take
        self.on_disk = {node for node in schedule.nodes if schedule.keys[node] in settings.on_disk}
        self.on_host = {node for node in schedule.nodes if schedule.keys[node] in settings.on_host}
        self.away = self.on_disk | self.on_host
        self.held: dict[Node, int] = {}  # first row still held of every stored node
        self.written: dict[Node, int] = {}  # and the row after its last
        self.gathered: dict[Node, int] = {}  # bytes of the values of all rows
        self.results = 0
        self.usage, self.scratch = Usage(), self.arithmetic.scratch_bytes()
        self.index = -1
        self.lasting = self.parts = 0  # of a sweep
        self.cost = StepCost()

    def begin(self, sweep: Sweep, borders: Sequence[int]) -> None:
        self.index += 1
        num_steps = len(borders) - 1
        self.usage.num_steps += num_steps
        self.usage.largest_sweep_steps = max(self.usage.largest_sweep_steps, num_steps)
        self.results += sum(t.node.row_bytes * t.node.rows for t in sweep.targets if t.output)
        rows = max(stop - start for start, stop in pairwise(borders))
        self.lasting = sum(node.lasting_bytes(rows, self.arithmetic) for node in sweep.order)
        if num_steps > 1:  # a stored slab is freed with its last row, which the next step still reads
            self.lasting += min(self.settings.step_bytes or 0, int(sweep.row_bytes() * rows))
        self.parts = 0

    def walked(self, sweep: Sweep, borders: Sequence[int], walk: StepWalk) -> Walked:
        key = self._key(sweep, borders)
        if key not in self.known:
            self.known[key] = self._costs(sweep, borders, walk)
        kept = 0
        for step, cost in self.known[key]:
            self._note(self._stored() + kept + self.parts + self.lasting + cost.working + self.scratch)
            self.usage.flops += cost.flops
            self.usage.traffic_bytes += cost.traffic
            self.usage.host_traffic_bytes += cost.host_traffic
            kept = cost.kept
            yield step, {}

    def _key(self, sweep: Sweep, borders: Sequence[int]) -> Hashable:
        """All that the costs of the steps of a sweep depend on."""
        targets = frozenset(target.node for target in sweep.targets)
        sources = frozenset(sweep.sources)
        return targets, frozenset(sweep.order), sources & self.on_disk, sources & self.on_host, tuple(borders)

    def _costs(self, sweep: Sweep, borders: Sequence[int], walk: StepWalk) -> list[tuple[Step, StepCost]]:
        """What each step takes; steps that differ only in their place are walked through once."""
        costs: dict[Hashable, StepCost] = {}
        found = []
        for step, following in make_steps(sweep, borders):
            pattern = pattern_of(sweep, step, following)
            if pattern is None or pattern not in costs:
                self.cost = StepCost()
                walk(step, following)
                costs[pattern] = self.cost
            found.append((step, costs[pattern]))
        return found

    def summary(self, source: Summary) -> int:
        return 0

    def read(self, source: Node, rows: Range, in_pieces: bool) -> int:
        """Bytes of a copy made to read stored rows."""
        size = source.row_bytes * (rows[1] - rows[0])
        if source in self.away:
            self.cost.traffic += size if source in self.on_disk else 0
            self.cost.host_traffic += size if source in self.on_host else 0
            return size
        if isinstance(source, Leaf) or in_pieces:
            return 0
        return size if rows[0] > 0 or rows[1] < source.rows else 0

    def take(self, source: Node, at_hand: Rows, rows: Range) -> int:
        return 0  # a view

    def compute(
        self,
        node: Node,
        inputs: Sequence[Any],
        rows: Range,
        owned: Sequence[bool],
        alive: Mapping[Node, Rows],
        ending: Sequence[Node],
    ) -> int:
        self.cost.flops += node.flops_per_row * (rows[1] - rows[0])
        copies = sum(inputs)
        is_new = not (node.view or node.overwrites(owned))
        made = node.held_bytes(*rows) if is_new else 0
        self._hold(alive, copies + made + node.workspace_bytes(*rows, self.arithmetic))
        if is_new:
            return made
        return sum(alive[source].value for source in ending if source in alive) or copies  # that memory goes on

    def join(self, node: Node, before: Rows, rows: tuple[int, int, int], value: int, alive: Mapping[Node, Rows]) -> int:
        whole = node.row_bytes * (rows[2] - rows[0])
        self._hold(alive, value + whole)
        return whole

    def keep(self, node: Node, at_hand: Rows, rows: Range) -> int:
        size = node.row_bytes * (rows[1] - rows[0])
        self.cost.kept += size
        return size

    def end_step(self, alive: Mapping[Node, Rows], targets: Mapping[Node, int]) -> None:
        self._hold(alive, sum(targets.values()))

    def deliver(self, target: Target, rows: Range, slabs: Mapping[Node, int]) -> None:
        node, count = target.node, rows[1] - rows[0]
        if target.store:
            self.held.setdefault(node, rows[0])
            self.written[node] = rows[1]
            self.usage.traffic_bytes += node.row_bytes * count if node in self.on_disk else 0
            self.usage.host_traffic_bytes += node.row_bytes * count if node in self.on_host else 0
            self.usage.disk_bytes = max(self.usage.disk_bytes, self._held(self.on_disk))
            self.usage.host_bytes = max(self.usage.host_bytes, self._held(self.on_host))
        self.parts += sum(s.row_bytes * count for s in target.summaries if isinstance(s, Whole))

    def drop_below(self, node: Node, row: int) -> None:
        if node in self.held:
            self.held[node] = max(self.held[node], row)

    def end(self, sweep: Sweep) -> None:
        self._note(self._stored() + 2 * self.parts)
        whole = [s for target in sweep.targets for s in target.summaries if isinstance(s, Whole)]
        self.gathered |= {summary: summary.row_bytes * summary.rows for summary in whole}

    def forget(self, node: Node) -> None:
        self.held.pop(node, None)
        self.written.pop(node, None)
        self.gathered.pop(node, None)

    def _hold(self, alive: Mapping[Node, Rows], more: int) -> None:
        self.cost.working = max(self.cost.working, sum(rows.value for rows in alive.values()) + more)

    def _stored(self) -> int:
        """Bytes of results, summaries and stored rows in memory; a piece is freed when its last row is."""
        return self.results + sum(self.gathered.values()) + self._held(self.held.keys() - self.away)

    def _held(self, nodes: Collection[Node]) -> int:
        """Bytes of the rows that are held of those nodes."""
        rows = {node: self.written[node] - self.held[node] for node in nodes if node in self.held}
        return sum(node.row_bytes * max(count, 0) for node, count in rows.items())

    def _note(self, held: int) -> None:
        held += FIXED_BYTES
        self.usage.sweep_peaks[self.index] = max(held, self.usage.sweep_peaks.get(self.index, 0))
        if held > self.usage.peak_bytes:
            self.usage.peak_bytes, self.usage.peak_sweep = held, self.index
            self.usage.alive = [self.schedule.keys[node] for node in self.held if node not in self.away]


def pattern_of(sweep: Sweep, step: Step, following: Step | None) -> Hashable:
    """A step without its place; None at the borders of a tensor, where a place makes a difference."""
    if following is None or any(0 in rows or rows[1] == node.rows for node, rows in step.demand.items()):
        return None
    own = tuple((*relative(step.demand.get(node), step.compute[node]),) for node in sweep.order)
    read = tuple(relative(step.demand.get(node), (0, 0))[0] for node in sweep.sources)
    left = tuple(step.compute[node][1] - following.demand.get(node, (0, 0))[0] for node in sweep.kept)
    return own, read, left


def relative(demand: Range | None, compute: Range) -> tuple[int, int, int]:
    """How many rows are needed, how many computed, and how far apart they begin."""
    low, high = demand or compute
    return high - low, compute[1] - compute[0], compute[0] - low
