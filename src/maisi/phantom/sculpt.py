"""Shapes in millimetres painted into a label array: tubes, sheets and ellipsoids on a bent lattice of coordinates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        slices = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            start, stop = np.searchsorted(axis, (a - self.reach, b + self.reach))
            if start >= stop:
                return None
            slices.append(slice(int(start), int(stop)))
        return slices[0], slices[1], slices[2]

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
    for start, stop in _pieces(points):
        _paint_piece(canvas, start, stop, id, over)


def paint_sheet(canvas: Canvas, a: np.ndarray, b: np.ndarray, id: int, over: np.ndarray) -> None:
    """The surface between two polylines (n, 4) and (m, 4) as touching tubes."""
    length = max(_length(a), _length(b))
    thin = max(1.0, float(min(a[:, 3].min(), b[:, 3].min())))
    count = max(2, int(np.ceil(length / (1.1 * thin))) + 1)
    for start, stop in zip(along(a, count), along(b, count), strict=True):
        paint_tube(canvas, np.stack([start, stop]), id, over)


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


def _pieces(points: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start, stop in pairwise(points):
        length = float(np.linalg.norm(stop[:3] - start[:3]))
        count = max(1, int(np.ceil(length / (STEP_IN_RADII * max(start[3], stop[3], 4.0)))))
        corners = start + (stop - start) * np.linspace(0, 1, count + 1)[:, None]
        yield from pairwise(corners)


def _paint_piece(canvas: Canvas, start: np.ndarray, stop: np.ndarray, id: int, over: np.ndarray) -> None:
    radius = max(start[3], stop[3])
    box = canvas.box(np.minimum(start, stop)[:3] - radius, np.maximum(start, stop)[:3] + radius)
    if box is None:
        return
    x, y, z = (c - s for c, s in zip(canvas.at(box), start[:3].astype(np.float32), strict=True))
    dx, dy, dz, dr = (stop - start).astype(np.float32)
    length2 = dx * dx + dy * dy + dz * dz
    t = np.clip((x * dx + y * dy + z * dz) / max(length2, np.float32(1e-6)), 0, 1)
    distance2 = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2
    canvas.paint(box, distance2 < (np.float32(start[3]) + t * dr) ** 2, id, over)
