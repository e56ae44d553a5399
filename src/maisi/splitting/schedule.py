"""The order of work on a graph of deferred operations: what is stored, what is recomputed, what is freed when.

Work is a list of *sweeps*. A sweep walks over the rows once, a step at a time, computes everything between what is
stored and its targets, and never holds more than a step of it. Norms and attention are barriers: what they summarise is
complete only after a sweep, so what they read again is stored (or, if a plan says so, computed again).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from maisi.splitting.graph import Leaf, Node, Summary
from maisi.splitting.layout import Range


@dataclass
class Target:
    """What a sweep produces of one node: its rows in a store, summaries of them, or rows of the result."""

    node: Node
    store: bool = False
    summaries: list[Summary] = field(default_factory=list)
    output: bool = False


@dataclass
class Sweep:
    """One walk over the rows; `order` is computed in every step, `sources` are read."""

    targets: list[Target]
    order: list[Node] = field(default_factory=list)
    sources: list[Node] = field(default_factory=list)
    kept: set[Node] = field(default_factory=set)  # their last rows are reused by the next step

    @property
    def cuts(self) -> tuple[int, ...]:
        return self.targets[0].node.cuts

    def row_bytes(self) -> float:
        """Bytes of the largest value, per row of the targets."""
        rows = max(self.targets[0].node.rows, 1)
        return max(node.row_bytes * node.rows / rows for node in self.order or [t.node for t in self.targets])


@dataclass
class Step:
    """Rows of one step: `demand` of every node that is read, `compute` without what the step before left."""

    demand: dict[Node, Range]
    compute: dict[Node, Range]
    floor: dict[Node, int] = field(default_factory=dict)  # first row of each source that a later step still reads


@dataclass
class Schedule:
    """Sweeps in order, and after which of them a stored node or a summary is read no more."""

    nodes: list[Node]
    stored: set[Node]
    sweeps: list[Sweep]
    last_read: dict[Node, int]
    keys: dict[Node, str]


def reachable(outputs: Iterable[Node]) -> list[Node]:
    """All nodes that the outputs need, inputs first."""
    found: set[Node] = set()
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.inputs)
    return sorted(found, key=lambda node: node.number)


def keys_of(nodes: Sequence[Node]) -> dict[Node, str]:
    """A name for every node that stays the same when the network is run again, on more or on fewer dense inputs."""
    seen: Counter[str] = Counter()
    keys = {}
    for node in nodes:
        seen[repr(node)] += 1
        keys[node] = f"{node!r} #{seen[repr(node)]}"
    return keys


def make_schedule(outputs: Sequence[Node], recompute: Collection[str] = ()) -> Schedule:
    """The sweeps that produce the outputs; `recompute` are keys of nodes that are not to be stored."""
    nodes = reachable(outputs)
    consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for source in dict.fromkeys(node.inputs):
            consumers[source].append(node)
    keys = keys_of(nodes)
    dropped = {node for node in nodes if keys[node] in recompute}
    stored = choose_stored(nodes, consumers, outputs, dropped)
    sweeps = make_sweeps(nodes, consumers, stored, outputs)
    store_narrow(nodes, consumers, stored, sweeps, dropped)
    for sweep in sweeps:
        fill_order(sweep, stored)
        sweep.kept = {n for n in sweep.order if n.flops_per_row and n not in {t.node for t in sweep.targets}}
    return Schedule(nodes, stored, sweeps, last_reads(sweeps, stored), keys)


def choose_stored(
    nodes: Sequence[Node],
    consumers: dict[Node, list[Node]],
    outputs: Sequence[Node],
    dropped: set[Node],
) -> set[Node]:
    """What is read more than once and expensive to compute."""
    stored: set[Node] = set()
    heavy: dict[Node, bool] = {}
    for node in nodes:
        if isinstance(node, (Leaf, Summary)):
            heavy[node] = False
            continue
        heavy[node] = node.flops_per_row > 0 or any(heavy[i] and i not in stored for i in node.inputs)
        times = len(consumers[node]) + (node in outputs)
        if heavy[node] and times > 1 and node not in dropped:
            stored.add(node)
    return stored


def make_sweeps(
    nodes: Sequence[Node], consumers: dict[Node, list[Node]], stored: set[Node], outputs: Sequence[Node]
) -> list[Sweep]:
    """Barriers in the order of the program; neighbours that read the same and need not wait share one."""
    sweeps: list[Sweep] = []
    for node in nodes:
        if node in stored:
            summaries = [c for c in consumers[node] if isinstance(c, Summary)]
            place(sweeps, Target(node, store=True, summaries=summaries), stored)
        elif isinstance(node, Summary) and node.inputs[0] not in stored:
            place(sweeps, Target(node.inputs[0], summaries=[node]), stored)
    for node in outputs:
        place(sweeps, Target(node, output=True), stored)
    return sweeps


def place(sweeps: list[Sweep], target: Target, stored: set[Node]) -> None:
    """Joins the last sweep where it can, or makes a new one."""
    if sweeps:
        last = sweeps[-1]
        made = {t.node for t in last.targets if t.store} | {s for t in last.targets for s in t.summaries}
        order, reads = between(target.node, stored)
        shared = set(reads) & {source for t in last.targets for source in between(t.node, stored)[1]}
        known = next((t for t in last.targets if t.node is target.node and not t.store), None)
        if known is not None and not target.store:
            known.summaries += target.summaries
            known.output |= target.output
            return
        if last.cuts == target.node.cuts and shared and not made & {*reads, *(i for n in order for i in n.inputs)}:
            last.targets.append(target)
            return
    sweeps.append(Sweep([target]))


def between(root: Node, stored: set[Node]) -> tuple[list[Node], list[Node]]:
    """Nodes computed on the way from what is stored to the root (inputs first), and the stored ones they read."""
    order: set[Node] = set()
    sources: set[Node] = set()
    if isinstance(root, Leaf):
        return [], [root]
    todo = [root]
    while todo:
        node = todo.pop()
        if node in order:
            continue
        order.add(node)
        for source in node.inputs:
            if isinstance(source, Leaf) or source in stored:
                sources.add(source)
            elif not isinstance(source, Summary):
                todo.append(source)
    return sorted(order, key=lambda n: n.number), sorted(sources, key=lambda n: n.number)


def fill_order(sweep: Sweep, stored: set[Node]) -> None:
    """Joins what the targets need."""
    order: set[Node] = set()
    sources: set[Node] = set()
    for target in sweep.targets:
        computed, read = between(target.node, stored)
        order.update(computed)
        sources.update(read)
    sweep.order = sorted(order, key=lambda node: node.number)
    sweep.sources = sorted(sources, key=lambda node: node.number)


def store_narrow(
    nodes: Sequence[Node],
    consumers: dict[Node, list[Node]],
    stored: set[Node],
    sweeps: list[Sweep],
    dropped: set[Node],
) -> None:
    """Computes a narrower reader of a wide stored node early, if the wide one can then be freed early.

    The shortcut of a residual block is the case: without this the block's wide input lives until the block's end.
    """
    orders = [[(t.node, between(t.node, stored)[0]) for t in sweep.targets] for sweep in sweeps]
    for narrow in nodes:
        if not narrow.flops_per_row or narrow in stored or narrow in dropped or not is_rowwise(narrow):
            continue
        wide = narrow.inputs[0]
        if isinstance(wide, (Leaf, Summary)) or wide.row_bytes <= narrow.row_bytes or not consumers[narrow]:
            continue
        if wide not in stored and wide not in dropped:
            continue
        others = [i for i, targets in enumerate(orders) if reads_besides(targets, wide, narrow)]
        mine = [i for i, targets in enumerate(orders) if any(narrow in order for _, order in targets)]
        if others and mine and max(others) < min(mine) and sweeps[max(others)].cuts == narrow.cuts:
            stored.add(narrow)
            sweeps[max(others)].targets.append(Target(narrow, store=True))
            orders[max(others)].append((narrow, []))
            orders = [
                [
                    (target, between(target, stored)[0] if narrow in {target, *order} else order)
                    for target, order in targets
                ]
                for targets in orders
            ]


def is_rowwise(node: Node) -> bool:
    """True for an operation that gives every row from the same row of one input."""
    if len(node.inputs) != 1 or isinstance(node, Summary):
        return False
    return node.rows == node.inputs[0].rows and all(
        node.need(row, row + 1) == [(row, row + 1)] for row in {0, node.rows - 1}
    )


def reads_besides(targets: Sequence[tuple[Node, list[Node]]], wide: Node, narrow: Node) -> bool:
    """True where a sweep with these targets and orders needs the wide node for something else than the narrow one."""
    return any(
        target is not wide and any(wide in node.inputs for node in order if node is not narrow)
        for target, order in targets
    )


def last_reads(sweeps: Sequence[Sweep], stored: set[Node]) -> dict[Node, int]:
    """Index of the last sweep that reads each stored node and each summary, or that makes it where none does."""
    last: dict[Node, int] = {}
    for i, sweep in enumerate(sweeps):
        last |= {summary: i for target in sweep.targets for summary in target.summaries}
        last |= {source: i for source in sweep.sources if source in stored}
        last |= {source: i for node in sweep.order for source in node.inputs if isinstance(source, Summary)}
    return last


def demands(sweep: Sweep, start: int, stop: int, have: dict[Node, Range]) -> Step:
    """Rows that a step start..stop of the targets needs of every node, given rows that the step before left."""
    demand: dict[Node, Range] = {}
    for target in sweep.targets:
        demand[target.node] = hull(demand.get(target.node), (start, stop))
    compute: dict[Node, Range] = {}
    for node in reversed(sweep.order):
        low, high = demand.get(node, (0, 0))
        if node in have and have[node][0] <= low < have[node][1]:
            low = min(have[node][1], high)
        compute[node] = (low, high)
        for source, rows in zip(node.inputs, node.need(low, high), strict=True):
            if not isinstance(source, Summary):
                demand[source] = hull(demand.get(source), rows)
    return Step(demand, compute)


def hull(known: Range | None, more: Range) -> Range:
    """The smallest range that holds both; an empty one holds nothing."""
    if known is None or known[0] == known[1]:
        return more
    if more[0] == more[1]:
        return known
    return min(known[0], more[0]), max(known[1], more[1])


def make_steps(sweep: Sweep, borders: Sequence[int]) -> list[tuple[Step, Step | None]]:
    """All steps of a sweep between borders, each knowing what the one before it leaves, with the one that follows."""
    steps = []
    have: dict[Node, Range] = {}
    for start, stop in pairwise(borders):
        step = demands(sweep, start, stop, have)
        have = {node: step.demand[node] for node in sweep.kept if node in step.demand}
        steps.append(step)
    floor = {source: source.rows for source in sweep.sources}
    for step in reversed(steps):
        step.floor = dict(floor)
        for source in sweep.sources:
            low, high = step.demand.get(source, (0, 0))
            if low < high:
                floor[source] = min(floor[source], low)
    return list(zip_longest(steps, steps[1:]))
