"""Scalar fields on a lattice of points about a centre, and their values at the voxels of a box.

A field says how early a tumour reaches a point; it is made on few points, whatever the voxels are, so that one drawn
tumour has one form on every grid and costs the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]

_NOISE_SD = 0.3316  # of a cubic B-spline with unit normal coefficients in three dimensions: (151 / 315) ** 1.5
_HALF_NEIGHBOURS = [
    (i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) > (0, 0, 0)
]  # the other 13 are their opposites


@dataclass(frozen=True)
class Field:
    """Values (x, y, z) at the points of a lattice whose axes are in mm from the centre; inf is never reached."""

    axes: Axes
    values: np.ndarray

    def at(self, axes: Axes) -> np.ndarray:
        """Linear interpolation at the points of other axes, float32; inf outside and where all around is inf."""
        known = np.isfinite(self.values)
        weights = [_hats(new, old) for new, old in zip(axes, self.axes, strict=True)]
        total = _along_all(np.where(known, self.values, 0), weights)
        if known.all():
            weight = np.einsum("i,j,k->ijk", *(each.sum(axis=1) for each in weights)).astype(np.float32)
        else:
            weight = _along_all(known, weights)
        return np.divide(total, weight, out=np.full_like(total, np.inf), where=weight > 1e-3)

    @property
    def step_mm(self) -> tuple[float, float, float]:
        """The distance of neighbouring points along each axis."""
        x, y, z = (float(axis[1] - axis[0]) for axis in self.axes)
        return x, y, z

    def restricted(self, allowed: np.ndarray) -> "Field":
        """The field, inf where a mask of its points is False."""
        return Field(self.axes, np.where(allowed, self.values, np.inf))

    def level(self, volume_mm3: float) -> float:
        """The value below which about this volume lies; inf where so much is never reached."""
        count = max(1, round(volume_mm3 / float(np.prod(self.step_mm))))
        if count > self.values.size:
            return float("inf")
        return float(np.partition(self.values.ravel(), count - 1)[count - 1])

    def extent(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The corners (mm) of a box that holds all points with values up to a level, and their neighbours."""
        reached = self.values <= level
        low, high = [], []
        for k, (axis, step) in enumerate(zip(self.axes, self.step_mm, strict=True)):
            along = np.flatnonzero(reached.any(axis=tuple(other for other in range(3) if other != k)))
            low.append(axis[along[0]] - step)
            high.append(axis[along[-1]] + step)
        return np.array(low), np.array(high)


def lattice_axes(half_mm: float, num: int) -> Axes:
    """The axes of a cubic lattice of `num` points on each, mm from its centre."""
    axis = np.linspace(-half_mm, half_mm, num)
    return axis, axis, axis


def noise(axes: Axes, period: float, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth gaussian noise of unit variance at lattice points, a cubic B-spline with knots `period` apart.

    What is drawn depends on `period` and `reach` alone, so that the same generator gives the same noise on any axes
    within `reach` of 0.
    """
    half = int(np.ceil(reach / period)) + 2
    knots = period * np.arange(-half, half + 1)
    coefficients = rng.standard_normal((len(knots),) * 3) / _NOISE_SD
    return _along_all(coefficients, [_bumps((axis[:, None] - knots) / period) for axis in axes])


def travel_times(
    mask: np.ndarray, slowness: np.ndarray, step_mm: Sequence[float], source: tuple[int, int, int]
) -> np.ndarray:
    """When a front from `source` reaches each point of `mask`: the least sum of lengths (mm) times slowness; else inf.

    Shortest paths over the 26 neighbours, which makes straight ways up to a tenth too long.
    """
    number = np.full(mask.shape, -1, np.int64)
    number[mask] = np.arange(np.count_nonzero(mask))
    rows, columns, lengths = [], [], []
    for offset in _HALF_NEIGHBOURS:
        here, there = _shifted(mask.shape, offset)
        both = mask[here] & mask[there]
        rows.append(number[here][both])
        columns.append(number[there][both])
        length = float(np.linalg.norm(np.array(offset) * step_mm))
        lengths.append(length * (slowness[here][both] + slowness[there][both]) / 2)
    count = int(np.count_nonzero(mask))
    edges = np.concatenate(lengths), (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.csr_matrix(edges, shape=(count, count))
    times = np.full(mask.shape, np.inf)
    times[mask] = dijkstra(graph, directed=False, indices=int(number[source]))
    return times


def _shifted(shape: tuple[int, ...], offset: tuple[int, int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The slices of all points that have a neighbour at this offset, and of these neighbours."""
    here = tuple(slice(max(0, -o), n - max(0, o)) for n, o in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, o), n - max(0, -o)) for n, o in zip(shape, offset, strict=True))
    return here, there


def _along_all(values: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The values with one matrix applied along each axis, float32."""
    for matrix in weights:
        values = np.moveaxis(np.tensordot(matrix.astype(np.float32), values.astype(np.float32), axes=(1, 0)), 0, -1)
    return values


def _hats(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    step = old[1] - old[0]
    return np.maximum(0.0, 1.0 - np.abs(new[:, None] - old) / step)


def _bumps(distance: np.ndarray) -> np.ndarray:
    """The cubic B-spline at these distances, in knots."""
    a = np.abs(distance)
    return np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.maximum(0.0, 2 - a) ** 3 / 6)
