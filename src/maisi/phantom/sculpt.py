"""Shapes in millimetres painted into a label array: tubes, sheets and ellipsoids on a bent lattice of coordinates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[slice, slice, slice]
STEP_IN_RADII = 2.5  # a tube is painted in pieces no longer than this, each in its own small box


@dataclass(frozen=True, eq=False)
class Canvas:
    """A label array and the canonical position (mm) of each of its voxels.

    `axes` are the positions before bending, one array an axis; `x y z` the bent ones, at most `reach` mm away.
    """

    labels: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    reach: float

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Box | None:
        """The voxels that can lie between two canonical corners; nothing when there are none."""
        return next((box for _, box in self.boxes(np.asarray(low)[None], np.asarray(high)[None])), None)

    def boxes(self, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[int, Box]]:
        """The same for many pairs of corners (n, 3): the number of each pair that has voxels, and these."""
        starts, stops = (
            np.stack([np.searchsorted(axis, corner) for axis, corner in zip(self.axes, corners.T, strict=True)], 1)
            for corners in (low - self.reach, high + self.reach)
        )
        shown = np.flatnonzero((starts < stops).all(1))
        for k, (x, y, z), (u, v, w) in zip(shown.tolist(), starts[shown].tolist(), stops[shown].tolist(), strict=True):
            yield k, (slice(x, u), slice(y, v), slice(z, w))

    def paint(self, box: Box, inside: np.ndarray, id: int, over: np.ndarray) -> None:
        """`id` where `inside` and where `over` (256 flags) lets the present label be replaced."""
        view = self.labels[box]
        view[inside & over[view]] = id

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bent coordinates in a box."""
        return self.x[box], self.y[box], self.z[box]


def paint_tube(canvas: Canvas, points: np.ndarray, id: int, over: np.ndarray) -> None:
    """A tube through points (n, 4): x, y, z, radius, the radius changing evenly between them; one point is a ball."""
    if len(points) == 1:
        paint_ellipsoid(canvas, points[0, :3], np.full(3, points[0, 3]), np.eye(3), id, over)
        return
    _paint_tubes(canvas, points[:-1], points[1:], id, over)


def paint_sheet(canvas: Canvas, a: np.ndarray, b: np.ndarray, id: int, over: np.ndarray) -> None:
    """The surface between two polylines (n, 4) and (m, 4) as touching tubes."""
    length = max(_length(a), _length(b))
    thin = max(1.0, float(min(a[:, 3].min(), b[:, 3].min())))
    count = max(2, int(np.ceil(length / (1.1 * thin))) + 1)
    _paint_tubes(canvas, along(a, count), along(b, count), id, over)


def paint_ellipsoid(
    canvas: Canvas, centre: np.ndarray, radii: np.ndarray, turn: np.ndarray, id: int, over: np.ndarray
) -> None:
    """An ellipsoid; `turn` is the rotation matrix from its own axes to the canonical ones."""
    extent = np.sqrt((turn**2) @ (np.asarray(radii) ** 2))
    box = canvas.box(centre - extent, centre + extent)
    if box is None:
        return
    x, y, z = (c - m for c, m in zip(canvas.at(box), centre, strict=True))
    total = np.zeros_like(x)
    for own, radius in zip(turn.T, radii, strict=True):
        total += ((own[0] * x + own[1] * y + own[2] * z) / radius) ** 2
    canvas.paint(box, total < 1, id, over)


def depth_inside(rows: Sequence[Sequence[float]], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """How far inside the stack of superellipses a point lies, mm along the radius; negative outside.

    Rows: z, centre x, half width, y of back, middle and front, exponent.
    """
    table = np.array(rows, float)
    centre, width, back, middle, front, power = (np.interp(z, table[:, 0], column) for column in table.T[1:])
    dx, dy = x - centre, y - middle
    half = np.where(dy > 0, front - middle, middle - back)
    q = (np.abs(dx / width) ** power + np.abs(dy / half) ** power) ** (1 / power)
    radius = np.sqrt(dx * dx + dy * dy)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(q > 1e-3, radius * (1 / q - 1), np.minimum(width, half))
    outside = (z < table[0, 0]) | (z > table[-1, 0])
    return np.where(outside, -1e3, depth).astype(np.float32)


def turn_matrix(degrees: Sequence[float]) -> np.ndarray:
    """The rotation about x, then y, then z, in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        step = np.eye(3)
        step[[i, j], [i, j]] = c
        step[i, j], step[j, i] = -s, s
        matrix = step @ matrix
    return matrix


def along(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points spread evenly along a polyline (n, k) by the length of its first three coordinates."""
    steps = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
    position = np.concatenate([[0], np.cumsum(steps)])
    where = np.linspace(0, position[-1], count)
    return np.stack([np.interp(where, position, column) for column in points.T], axis=1)


def smooth(points: np.ndarray, step_mm: float = 6.0) -> np.ndarray:
    """A polyline (n, k) bent smoothly through its points (Catmull-Rom), about `step_mm` between new points."""
    if len(points) < 3:
        return points
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = []
    for k in range(len(points) - 1):
        p0, p1, p2, p3 = padded[k : k + 4]
        count = max(2, int(np.ceil(np.linalg.norm(p2[:3] - p1[:3]) / step_mm)))
        t = np.linspace(0, 1, count, endpoint=False)[:, None]
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def _length(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1).sum())


def _paint_tubes(canvas: Canvas, starts: np.ndarray, stops: np.ndarray, id: int, over: np.ndarray) -> None:
    """Straight tubes from points (n, 4) to points (n, 4), in pieces, each in a box of its own."""
    starts, stops = _pieces(starts, stops)
    radius = np.maximum(starts[:, 3:], stops[:, 3:])
    low, high = np.minimum(starts, stops)[:, :3] - radius, np.maximum(starts, stops)[:, :3] + radius
    for k, box in canvas.boxes(low, high):
        _paint_piece(canvas, box, starts[k], stops[k], id, over)


def _pieces(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends (m, 4) of pieces of straight tubes, none longer than a few radii."""
    widest = np.maximum(np.maximum(starts[:, 3], stops[:, 3]), 4.0)
    lengths = np.linalg.norm(stops[:, :3] - starts[:, :3], axis=1)
    counts = np.maximum(1, np.ceil(lengths / (STEP_IN_RADII * widest)).astype(int))
    shares_of = {count: np.linspace(0, 1, count + 1) for count in set(counts.tolist())}
    shares = [shares_of[count] for count in counts.tolist()]
    first, spans = np.repeat(starts, counts, axis=0), np.repeat(stops - starts, counts, axis=0)
    before, after = (np.concatenate(ends)[:, None] for ends in ([s[:-1] for s in shares], [s[1:] for s in shares]))
    return first + spans * before, first + spans * after


def _paint_piece(canvas: Canvas, box: Box, start: np.ndarray, stop: np.ndarray, id: int, over: np.ndarray) -> None:
    x, y, z = (c - s for c, s in zip(canvas.at(box), start[:3].astype(np.float32), strict=True))
    dx, dy, dz, dr = (stop - start).astype(np.float32)
    length2 = dx * dx + dy * dy + dz * dz
    t = np.clip((x * dx + y * dy + z * dz) / max(length2, np.float32(1e-6)), 0, 1)
    distance2 = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2
    canvas.paint(box, distance2 < (np.float32(start[3]) + t * dr) ** 2, id, over)
