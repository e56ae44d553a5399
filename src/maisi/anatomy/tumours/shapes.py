"""The forms of tumours: how early each point is reached, and the voxels that are reached first."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maisi.anatomy.morphology import parts
from maisi.anatomy.tumours.lattice import Axes, Field, lattice_axes, noise, travel_times
from maisi.errors import InvalidRequestError
from maisi.shapes import Size3, Spacing3, in_words
from maisi.space.grid import Grid

Mask = Callable[[Axes], np.ndarray]
"""Where a tumour may grow, at points given by axes in mm from its centre."""

ELASTIC_REACH = 1.7  # radii that a bent ball may reach from its centre
GROWTH_REACH = 2.4
_ELASTIC_POINTS, _GROWTH_POINTS = 41, 33
_TRIES = 8  # to make up for what is cut off
_SMALLEST_SHARE = 0.9  # of the volume asked for; a voxel may always be missing


@dataclass(frozen=True)
class Box:
    """A part of a grid: its first voxel, which may lie outside, its size, and a centre (mm) to measure from."""

    grid: Grid
    start: Size3
    shape: Size3
    centre_mm: Spacing3

    @classmethod
    def around(cls, grid: Grid, centre_mm: Spacing3, half_mm: float) -> "Box":
        """The voxels of the grid within `half_mm` of the centre along each axis."""
        return cls.spanning(grid, centre_mm, np.full(3, -half_mm), np.full(3, half_mm)).clipped()

    @classmethod
    def spanning(cls, grid: Grid, centre_mm: Spacing3, low_mm: np.ndarray, high_mm: np.ndarray) -> "Box":
        """The voxels between two corners, mm from the centre; it may reach outside the grid."""
        middle, spacing = grid.index(np.asarray(centre_mm)), np.array(grid.spacing)
        low = np.floor(middle + low_mm / spacing).astype(int)
        high = np.ceil(middle + high_mm / spacing).astype(int) + 1
        x, y, z = low.tolist()
        a, b, c = (high - low).tolist()
        return cls(grid, (x, y, z), (a, b, c), centre_mm)

    def clipped(self) -> "Box":
        """The part of the box that lies in the grid, at least a voxel."""
        low = np.clip(self.start, 0, np.array(self.grid.shape) - 1)
        high = np.clip(np.add(self.start, self.shape), low + 1, self.grid.shape)
        x, y, z = low.tolist()
        a, b, c = (high - low).tolist()
        return Box(self.grid, (x, y, z), (a, b, c), self.centre_mm)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the box lies in an array of the grid."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))
        return x, y, z

    @property
    def axes(self) -> Axes:
        """Where the voxels lie along each axis, mm from the centre."""
        x, y, z = (
            o + s * (a + np.arange(n)) - c
            for o, s, a, n, c in zip(
                self.grid.origin, self.grid.spacing, self.start, self.shape, self.centre_mm, strict=True
            )
        )
        return x, y, z


def lesion_shape(grid: Grid, centre_mm: Spacing3, diameter_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A plausible irregular blob on a grid, bool `[x y z]`, of the volume of a ball of this diameter (mm).

    A bent ball about the centre (RAS, mm); the same generator gives the same form on any grid. The number of voxels is
    met to a tenth or one, and at least one is taken; what lies outside the grid is cut off. Raises InvalidRequestError
    for a centre outside the grid, for a diameter that is no positive length, and for a lesion of so few voxels that
    they do not hang together.
    """
    check_diameter(diameter_mm)
    check_inside(grid, centre_mm)
    radius = drawn_radius(grid, diameter_mm)
    field = elastic_field(radius, rng)
    box = Box.spanning(grid, centre_mm, *field.extent(np.inf))
    values = field.at(box.axes)
    found = first_reached(values, np.isfinite(values), num_voxels(grid, diameter_mm))
    if found is None:
        voxel = in_words(grid.spacing)
        raise InvalidRequestError(
            f"a lesion of {diameter_mm:g} mm has no connected form in voxels of {voxel} mm; accepted: a larger one"
        )
    result, seen = np.zeros(grid.shape, bool), box.clipped()
    offset = np.subtract(seen.start, box.start)
    result[seen.slices] = found[tuple(slice(a, a + n) for a, n in zip(offset, seen.shape, strict=True))]
    return result


def check_diameter(diameter_mm: float) -> None:
    """Nothing, or an InvalidRequestError for what is no positive length."""
    if not (np.isfinite(diameter_mm) and diameter_mm > 0):
        raise InvalidRequestError(f"a diameter of {diameter_mm:g} mm is impossible; accepted: a positive length in mm")


def check_inside(grid: Grid, at_mm: Spacing3) -> None:
    """Nothing, or an InvalidRequestError for a place that no voxel covers."""
    index = np.rint(grid.index(np.asarray(at_mm, float))).astype(int) if np.isfinite(at_mm).all() else np.full(3, -1)
    if (index < 0).any() or (index >= grid.shape).any():
        corners = grid.corners()
        spans = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(corners.min(0), corners.max(0), strict=True))
        raise InvalidRequestError(f"{shown_mm(at_mm)} lies outside the volume; accepted: x, y, z in {spans} mm (RAS)")


def shown_mm(at_mm: Spacing3) -> str:
    """A place in words."""
    return f"({', '.join(f'{x:.1f}' for x in at_mm)}) mm"


def ball_ml(diameter_mm: float) -> float:
    """The volume of a ball."""
    return float(np.pi / 6000 * diameter_mm**3)


def ball_mm(volume_ml: float) -> float:
    """The diameter of the ball of a volume."""
    return float((6000 / np.pi * volume_ml) ** (1 / 3))


def num_voxels(grid: Grid, diameter_mm: float) -> int:
    """The voxels of a ball, at least one."""
    return max(1, round(1000 * ball_ml(diameter_mm) / float(np.prod(grid.spacing))))


def drawn_radius(grid: Grid, diameter_mm: float) -> float:
    """The radius (mm) at which a form is drawn: that of the tumour, or what reaches past a voxel."""
    return max(diameter_mm / 2, 0.6 * max(grid.spacing))


def elastic_field(radius_mm: float, rng: np.random.Generator) -> Field:
    """How far from the centre of a bent ellipsoid each point is, in its radii: 1 at about its surface."""
    axes = lattice_axes(ELASTIC_REACH, _ELASTIC_POINTS)
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    points = points + 0.2 * np.stack([noise(axes, 1.1, ELASTIC_REACH, rng) for _ in range(3)])
    lengths = np.exp(rng.normal(0, 0.14, 3))
    lengths /= np.prod(lengths) ** (1 / 3)
    turned = np.einsum("ij,jxyz->ixyz", random_rotation(rng) / lengths[:, None], points)
    rough = noise(axes, 0.5, ELASTIC_REACH, rng)
    values = np.sqrt((turned**2).sum(axis=0)) * np.exp(0.08 * rough)
    return Field(tuple(radius_mm * axis for axis in axes), values)  # type: ignore[arg-type]


def growth_field(radius_mm: float, allowed: Mask, rng: np.random.Generator) -> Field:
    """When a front from the centre that runs at uneven speed through what is allowed reaches each point, in radii."""
    unit = lattice_axes(GROWTH_REACH, _GROWTH_POINTS)
    axes: Axes = tuple(radius_mm * axis for axis in unit)  # type: ignore[assignment]
    slowness = np.exp(0.35 * noise(unit, 0.8, GROWTH_REACH, rng) + 0.2 * noise(unit, 0.4, GROWTH_REACH, rng))
    inside = allowed(axes)
    middle = (_GROWTH_POINTS // 2,) * 3
    if not inside[middle]:
        return Field(axes, np.full(inside.shape, np.inf))
    return Field(axes, travel_times(inside, slowness, [axis[1] - axis[0] for axis in unit], middle))


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix (3, 3), drawn evenly."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(q * np.sign(np.diag(r)))


def first_reached(field: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray | None:
    """The connected `count` voxels of `allowed` with the lowest values, to a tenth or a voxel; else None.

    Voxels that are reached early but lie apart are left out, and later ones taken for them.
    """
    reachable, least = np.flatnonzero(allowed & np.isfinite(field)), min(_SMALLEST_SHARE * count, count - 1)
    times = field.ravel()[reachable]
    wanted = min(count, len(reachable))
    for _ in range(_TRIES):
        if wanted < max(1, least):
            return None
        earliest = np.argpartition(times, wanted - 1)[:wanted]
        found = _largest_part(reachable[earliest], field.shape)
        missing = count - int(np.count_nonzero(found))
        if missing <= 0.01 * count or wanted == len(reachable):
            break
        wanted = min(wanted + missing, len(reachable))
    return found if abs(missing) <= count - least else None


def _largest_part(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask.ravel()[voxels] = True
    numbered, sizes = parts(mask)
    return mask if len(sizes) == 2 else numbered == 1 + int(sizes[1:].argmax())
