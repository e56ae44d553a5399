"""Predicts what a schedule will hold in memory at once, by walking through it without computing anything."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from maisi.splitting.cpu.parallel import scratch_bytes
from maisi.splitting.execute import Settings, largest_slab, slab_borders, step_borders
from maisi.splitting.graph import Leaf, Node, Normalised, Summary, Whole
from maisi.splitting.layout import Range
from maisi.splitting.schedule import Schedule, Step, Sweep, make_schedule, make_steps

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


class Meter:
    """A walk through a schedule that counts bytes as `execute.Execution` would allocate them."""

    def __init__(self, schedule: Schedule, settings: Settings) -> None:
        self.schedule, self.settings = schedule, settings
        self.on_disk = {node for node in schedule.nodes if schedule.keys[node] in settings.on_disk}
        self.on_host = {node for node in schedule.nodes if schedule.keys[node] in settings.on_host}
        self.away = self.on_disk | self.on_host
        self.held: dict[Node, int] = {}  # first row still held of every stored node, and bytes by it
        self.written: dict[Node, int] = {}
        self.fixed = 0  # results and gathered values
        self.largest = largest_slab(schedule)
        self.usage = Usage()

    def run(self) -> Usage:
        gathered: dict[Node, int] = {}
        last_use = {s: i for i, sweep in enumerate(self.schedule.sweeps) for n in sweep.order for s in n.inputs}
        for index, sweep in enumerate(self.schedule.sweeps):
            self._sweep(index, sweep)
            for target in sweep.targets:
                for summary in target.summaries:
                    if isinstance(summary, Whole):
                        gathered[summary] = summary.row_bytes * summary.rows
                        self.fixed += gathered[summary]
            for node, last in self.schedule.last_read.items():
                if last == index:
                    self.held.pop(node, None)
                    self.written.pop(node, None)
            done = [summary for summary in gathered if last_use.get(summary, -1) <= index]
            self.fixed -= sum(gathered.pop(summary) for summary in done)
        return self.usage

    def _sweep(self, index: int, sweep: Sweep) -> None:
        if self.settings.step_bytes is None:
            borders = slab_borders(sweep, sweep.cuts, self.largest)
        else:
            borders = step_borders(sweep, sweep.cuts[0], sweep.cuts[-1], self.settings.step_bytes)
        steps = make_steps(sweep, borders)
        self.usage.num_steps += len(steps)
        self.usage.largest_sweep_steps = max(self.usage.largest_sweep_steps, len(steps))
        self.fixed += sum(t.node.row_bytes * t.node.rows for t in sweep.targets if t.output)
        kept = 0
        gathered = 0
        rows = max(stop - start for start, stop in pairwise(borders))
        lasting = sum(node.lasting_bytes(rows) for node in sweep.order)
        if len(steps) > 1:  # a stored slab is freed with its last row, which the next step still reads
            lasting += min(self.settings.step_bytes or 0, int(sweep.row_bytes() * rows))
        for i, step in enumerate(steps):
            following = steps[i + 1] if i + 1 < len(steps) else None
            working, kept_next = self._step(sweep, step, following)
            self._note(index, self._stored() + kept + gathered + lasting + working)
            for target in sweep.targets:
                start, stop = step.demand[target.node]
                if target.store:
                    self.held.setdefault(target.node, start)
                    self.written[target.node] = stop
                    self._count_traffic(target.node, target.node.row_bytes * (stop - start))
                for summary in target.summaries:
                    if isinstance(summary, Whole):
                        gathered += summary.row_bytes * (stop - start)
            kept = kept_next
            self.usage.disk_bytes = max(self.usage.disk_bytes, self._held(self.on_disk))
            self.usage.host_bytes = max(self.usage.host_bytes, self._held(self.on_host))
            for source in sweep.sources:
                if self.schedule.last_read.get(source) == index and source in self.held:
                    self.held[source] = max(self.held[source], step.floor[source])
        self._note(index, self._stored() + 2 * gathered)

    def _stored(self) -> int:
        """Bytes of stored rows in memory; a piece is freed when its last row is."""
        return self.fixed + self._held(self.held.keys() - self.away)

    def _held(self, nodes: Collection[Node]) -> int:
        """Bytes of the rows that are held of those nodes."""
        held = {node: self.written[node] - low for node, low in self.held.items() if node in nodes}
        return sum(node.row_bytes * max(rows, 0) for node, rows in held.items())

    def _count_traffic(self, node: Node, size: int) -> None:
        """Bytes of a node that go to where it is kept, or come from there."""
        self.usage.traffic_bytes += size if node in self.on_disk else 0
        self.usage.host_traffic_bytes += size if node in self.on_host else 0

    def _note(self, index: int, held: int) -> None:
        held += FIXED_BYTES
        self.usage.sweep_peaks[index] = max(held, self.usage.sweep_peaks.get(index, 0))
        if held > self.usage.peak_bytes:
            self.usage.peak_bytes, self.usage.peak_sweep = held, index
            self.usage.alive = [self.schedule.keys[node] for node in self.held if node not in self.away]

    def _step(self, sweep: Sweep, step: Step, following: Step | None) -> tuple[int, int]:
        """Most bytes of values alive at once in a step, and of rows kept for the next one."""
        values: dict[Node, int] = {}
        fresh: set[Node] = set()
        last_use = {source: node for node in sweep.order for source in node.inputs}
        targets = {target.node for target in sweep.targets}
        peak = kept = 0
        for node in sweep.order:
            start, stop = step.compute[node]
            self.usage.flops += node.flops_per_row * (stop - start)
            copies = 0
            owned = False
            for source, rows in zip(node.inputs, node.need(start, stop), strict=True):
                if isinstance(source, Summary):
                    continue
                is_last = last_use[source] is node and source not in targets and source not in sweep.kept
                owned |= is_last and source in fresh and source.row_bytes == node.row_bytes
                if source not in values:
                    copies += self._read(node, source, rows)
            made = node.held_bytes(start, stop)
            if node.view or (owned and node.in_place):
                made = 0
            if not node.view or owned:
                fresh.add(node)
            peak = max(peak, sum(values.values()) + copies + made + node.workspace_bytes(start, stop))
            if node.view or (owned and node.in_place):  # the memory of the input goes on
                made = sum(values.get(s, 0) for s in node.inputs if last_use[s] is node) or copies
            for source in node.inputs:
                if last_use[source] is node and source not in targets:
                    values.pop(source, None)
            if node in sweep.kept:
                rows = step.demand.get(node, (start, stop))
                if rows[0] < start:
                    whole = node.row_bytes * (rows[1] - rows[0])
                    peak = max(peak, sum(values.values()) + made + whole)
                    made = whole
                if following is not None and node in following.demand:
                    kept += node.row_bytes * max(0, stop - following.demand[node][0])
            values[node] = made
        leftovers = sum(self._read(None, t.node, step.demand[t.node]) for t in sweep.targets if t.node not in values)
        return max(peak, sum(values.values()) + leftovers) + scratch_bytes(), kept

    def _read(self, node: Node | None, source: Node, rows: Range) -> int:
        """Bytes of a copy made to read stored rows."""
        size = source.row_bytes * (rows[1] - rows[0])
        if source in self.away:
            self._count_traffic(source, size)
            return size
        if isinstance(source, Leaf) or isinstance(node, Normalised):
            return 0
        return size if rows[0] > 0 or rows[1] < source.rows else 0


def predict(outputs: Sequence[Node], settings: Settings) -> Usage:
    """What carrying out the outputs with these settings will take."""
    return Meter(make_schedule(outputs, settings.recompute), settings).run()
