"""Outlines of masks as polygons, and polygons as masks: exact, there and back.

An outline runs through the middles between neighbouring pixel centres (marching squares; Lorensen & Cline, 1987, in two
dimensions), so that the centres of a mask's pixels, and no others, lie within. Pixels that touch at a corner alone are
parted. A hole is joined to the outline around it by a channel of no width (the keyhole of PS3.3 C.8.8.6.3) that passes
between rows of pixel centres.
"""

from collections.abc import Sequence

import numpy as np

_STEPS = {  # by which corners of a cell are inside (1: low low, 2: high low, 4: low high, 8: both high): from, to
    1: ("BL",),
    2: ("RB",),
    3: ("RL",),
    4: ("LT",),
    5: ("BT",),
    6: ("RB", "LT"),
    7: ("RT",),
    8: ("TR",),
    9: ("BL", "TR"),
    10: ("TB",),
    11: ("TL",),
    12: ("LR",),
    13: ("BR",),
    14: ("LB",),
}
_MIDDLES = {"B": (1, 0), "R": (2, 1), "T": (1, 2), "L": (0, 1)}  # of a cell's edges, in halves of a pixel

Loop = list[tuple[int, int]]
"""Corners of a closed polygon in halves of a pixel, the inside to the left."""


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons `(n, 2)` in pixel indices around all that is true in a mask `[i j]`, none within another."""
    outer: list[Loop] = []
    holes: list[Loop] = []
    for loop in _loops(mask):
        (outer if _area(loop) > 0 else holes).append(loop)
    return [np.array(loop, np.float64) / 2 for loop in _joined(outer, holes)]


def _loops(mask: np.ndarray) -> list[Loop]:
    """The boundaries of a mask, the mask to their left."""
    padded = np.pad(mask, 1).astype(np.uint8)
    cells = padded[:-1, :-1] + 2 * padded[1:, :-1] + 4 * padded[:-1, 1:] + 8 * padded[1:, 1:]
    follows: dict[tuple[int, int], tuple[int, int]] = {}
    for i, j in np.argwhere((cells > 0) & (cells < 15)).tolist():
        for step in _STEPS[cells[i, j]]:
            follows[_middle(i, j, step[0])] = _middle(i, j, step[1])
    loops = []
    while follows:
        first, at = follows.popitem()
        loop = [first]
        while at != first:
            loop.append(at)
            at = follows.pop(at)
        loops.append(_corners(loop))
    return loops


def _middle(i: int, j: int, edge: str) -> tuple[int, int]:
    x, y = _MIDDLES[edge]
    return 2 * (i - 1) + x, 2 * (j - 1) + y  # without the padding


def _corners(loop: Loop) -> Loop:
    """The points at which a loop turns."""
    kept = []
    for (x0, y0), (x, y), (x1, y1) in zip((loop[-1], *loop[:-1]), loop, (*loop[1:], loop[0]), strict=True):
        if (x - x0) * (y1 - y) != (y - y0) * (x1 - x):
            kept.append((x, y))
    return kept


def _area(loop: Loop) -> int:
    """Twice the area, negative for a hole."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, (*loop[1:], loop[0]), strict=True))


def _joined(outer: list[Loop], holes: list[Loop]) -> list[Loop]:
    """The outlines with their holes: each hole, from the highest down, joined to what lies left of its lowest point."""
    waiting = sorted(holes, key=_lowest)
    while waiting:
        hole = waiting.pop()
        start = _lowest(hole)
        at, place = hole.index((start[1], start[0])), (start[1], start[0])
        target, corner, hit = _left_of(place, [*outer, *waiting])
        target[corner + 1 : corner + 1] = [(hit, place[1]), *hole[at:], *hole[:at], place, (hit, place[1])]
    return outer


def _lowest(loop: Loop) -> tuple[int, int]:
    """The (y, x) of the leftmost of a loop's lowest points."""
    return min((y, x) for x, y in loop)


def _left_of(place: tuple[int, int], loops: list[Loop]) -> tuple[Loop, int, int]:
    """The first edge that a line to the left meets: its loop, the place of its first corner, and the x."""
    x, y = place
    best: tuple[int, int, int] | None = None
    for number, loop in enumerate(loops):
        for corner, ((x0, y0), (x1, y1)) in enumerate(zip(loop, (*loop[1:], loop[0]), strict=True)):
            if not min(y0, y1) <= y <= max(y0, y1):
                continue
            met = max((m for m in (x0, x1) if m < x), default=x) if y0 == y1 else x0 + (x1 - x0) * (y - y0) // (y1 - y0)
            if met < x and (best is None or met > best[0]):
                best = (met, number, corner)
    assert best is not None, "a hole lies within an outline"
    return loops[best[1]], best[2], best[0]


def filled(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which pixel centres `[i j]` lie within an odd number of polygons `(n, 2)`, in pixel indices."""
    turns = np.zeros((shape[0] + 1, shape[1]), bool)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = (np.clip(np.ceil(end_of(start[:, 1], end[:, 1])), 0, shape[1]).astype(int) for end_of in _ENDS)
        for edge in np.flatnonzero(high > low):
            (x0, y0), (x1, y1) = start[edge], end[edge]
            rows = np.arange(low[edge], high[edge])
            met = x0 + (x1 - x0) * (rows - y0) / (y1 - y0)
            turns[np.clip(np.ceil(met), 0, shape[0]).astype(int), rows] ^= True
    return np.logical_xor.accumulate(turns, axis=0)[:-1]


_ENDS = (np.minimum, np.maximum)
