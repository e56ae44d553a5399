"""Tumours in the wall of a tube: crescents and rings along its centre line."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from maisi.anatomy.tumours.lattice import Axes, Field, lattice_axes, noise, travel_times
from maisi.anatomy.tumours.shapes import Mask

LUMEN_REACH = 1.6  # radii of the tumour, and what the tube needs besides
TUBE_MM = 22.0  # half the width of a wide tube
_POINTS = 45
_BIN_MM = 6.0  # of the centre line
_COVERAGE = (0.4, 1.7)  # share of the circumference; above 1 the middle of the tumour closes to a ring
_THICKNESS = (0.5, 0.9)  # of the tube's radius


def lumen_reach(radius_mm: float) -> float:
    """How far (mm) the form of a tumour needs to see the tube around its centre."""
    return LUMEN_REACH * radius_mm + TUBE_MM


def lumen_field(radius_mm: float, tube: Mask, rng: np.random.Generator) -> Field:
    """How early each point of a tube is reached by a tumour that starts in its wall beside the centre.

    It runs along the centre line, around it, and from the wall towards it; 1 is at about the surface of a tumour of the
    volume of a ball of this radius.
    """
    unit = lattice_axes(1.0, _POINTS)
    axes: Axes = tuple(lumen_reach(radius_mm) * axis for axis in unit)  # type: ignore[assignment]
    rough = noise(unit, 0.25, 1.0, rng)
    coverage, thickness = rng.uniform(*_COVERAGE), rng.uniform(*_THICKNESS)
    inside = tube(axes)
    middle = (_POINTS // 2,) * 3
    if not inside[middle]:
        return Field(axes, np.full(inside.shape, np.inf))
    step = [axis[1] - axis[0] for axis in axes]
    reached = np.isfinite(travel_times(inside, np.ones(inside.shape), step, middle))
    along, around, tube_radius = _coordinates(reached, axes, step, middle)
    depth = ndimage.distance_transform_edt(reached, sampling=step)
    wall = thickness * tube_radius
    section = 2 * np.pi * min(coverage, 1.0) * max(tube_radius - wall / 2, wall / 2) * wall
    length = max(4 / 3 * np.pi * radius_mm**3 / section, 0.5 * radius_mm)
    squares = (along / (0.7 * length)) ** 2 + (around / (np.pi * coverage)) ** 2 + (depth / wall) ** 4
    return Field(axes, np.where(reached, np.sqrt(squares) * np.exp(0.12 * rough), np.inf))


def _coordinates(
    tube: np.ndarray, axes: Axes, step_mm: Sequence[float], middle: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Along the centre line (mm from the middle), around it (radians from the middle's side), and the tube's radius.

    How far along a point lies is how much further than the middle it is from one end of the tube: seen from afar, ways
    of one length end in one cross-section. The centre line joins the means of these cross-sections.
    """
    ones = np.ones(tube.shape)
    end = _farthest(travel_times(tube, ones, step_mm, middle))
    way = travel_times(tube, ones, step_mm, end)
    along = np.where(tube, way - way[middle], 0.0)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)[tube]
    s = along[tube]
    line = _centre_line(points, s)
    offsets = points - np.stack([np.interp(s, line[:, 0], line[:, k]) for k in (1, 2, 3)], axis=-1)
    tangent = _tangent(line)
    offsets -= np.outer(offsets @ tangent, tangent)
    near = np.abs(s) <= _BIN_MM
    radius = float(np.sqrt(2 * np.mean((offsets[near] ** 2).sum(axis=-1))))  # of the disc with this mean square
    around = np.zeros(tube.shape)
    around[tube] = _angles(offsets, _side(line, tangent))
    return along, around, max(radius, min(step_mm))


def _farthest(times: np.ndarray) -> tuple[int, int, int]:
    x, y, z = np.unravel_index(int(np.argmax(np.where(np.isfinite(times), times, -1.0))), times.shape)
    return int(x), int(y), int(z)


def _centre_line(points: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Rows of (along, x, y, z), ascending: the mean of each cross-section."""
    bins = np.round(along / _BIN_MM).astype(int)
    used, which = np.unique(bins, return_inverse=True)
    counts = np.bincount(which)
    means = [np.bincount(which, weights=points[:, k]) / counts for k in range(3)]
    return np.stack([used * _BIN_MM, *(ndimage.gaussian_filter1d(m, 1.0, mode="nearest") for m in means)], axis=-1)


def _tangent(line: np.ndarray) -> np.ndarray:
    """The direction of the centre line at the middle, of length 1."""
    ahead, behind = (
        np.array([np.interp(s, line[:, 0], line[:, k]) for k in (1, 2, 3)]) for s in (2 * _BIN_MM, -2 * _BIN_MM)
    )
    way = ahead - behind
    length = float(np.linalg.norm(way))
    return way / length if length > 0 else np.array([0.0, 0.0, 1.0])


def _side(line: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """From the centre line to the middle of the field, across the tube."""
    side = -np.array([np.interp(0.0, line[:, 0], line[:, k]) for k in (1, 2, 3)])
    return np.asarray(side - (side @ tangent) * tangent)


def _angles(offsets: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Between each offset and a side, 0 to pi."""
    lengths = np.linalg.norm(offsets, axis=-1) * np.linalg.norm(side)
    cosine = np.divide(offsets @ side, lengths, out=np.ones_like(lengths), where=lengths > 1e-9)
    return np.arccos(np.clip(cosine, -1, 1))
