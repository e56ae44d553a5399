"""New tumours in a label map."""

from dataclasses import replace

import numpy as np

from maisi.anatomy.tumours.ground import Ground, Piece, coarse_depth
from maisi.anatomy.tumours.lattice import Field
from maisi.anatomy.tumours.lumen import lumen_field
from maisi.anatomy.tumours.shapes import (
    Box,
    ball_ml,
    ball_mm,
    check_diameter,
    check_inside,
    drawn_radius,
    elastic_field,
    first_reached,
    growth_field,
    num_voxels,
    shown_mm,
)
from maisi.anatomy.tumours.table import tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.shapes import Spacing3
from maisi.space.volume import LabelMap

_TRIES = 24  # places for one tumour
_DEPTH = {"elastic": 0.8, "growth": 0.45, "lumen": 0.0}  # of a place, in radii, where the host is so thick
_DEEPEST = 0.85  # and else this share of its thickness
_ROUGHLY = 0.85  # of its volume must be free on the points of its field
_SLACK = 1.4  # by which the field may be passed where voxels are fewer than points say
_COMPACT = 1.35  # radii that a tumour may reach at first; one more when places run short
_LARGEST_SHARE = 0.3  # of its host, where no size is asked for


def plant(
    labels: LabelMap,
    tumour: str | int,
    rng: np.random.Generator,
    *,
    diameter_mm: float | None = None,
    volume_ml: float | None = None,
    number: int = 1,
    at_mm: Spacing3 | None = None,
    vocabulary: Vocabulary | None = None,
) -> LabelMap:
    """The label map with `number` new tumours, each a connected part that touches no other lesion.

    `tumour` is an id or a name of the vocabulary. `diameter_mm` is that of the ball of the volume (`volume_ml`, each);
    without either, each is drawn from the row of `tumours.yaml`. A tumour has its volume to a tenth and lies in its
    host, off the border by the row's margin; nothing but its own voxels changes. At `at_mm` (RAS) it has its middle, or
    the place of the wall where it starts. What comes out depends on the label map, the arguments and `rng` alone.

    Raises InvalidRequestError for an unknown tumour, a map without its host, a place outside volume or host or too near
    the border, a tumour larger than its organ, and where there is no room after a bounded number of tries.
    """
    vocabulary = vocabulary or load_vocabulary()
    row = tumour_named(tumour, vocabulary)
    diameter = _asked_diameter(diameter_mm, volume_ml)
    if number < 1:
        raise InvalidRequestError(f"{number} tumours cannot be planted; accepted: 1 or more")
    if at_mm is not None and number > 1:
        raise InvalidRequestError(f"{number} tumours cannot lie at one place {shown_mm(at_mm)}; ask for 1, or no place")
    ground = Ground(replace(labels, array=labels.array.copy()), row, vocabulary)
    _check_fits(ground, diameter)
    for placed in range(number):
        mask = _somewhere(ground, diameter, rng) if at_mm is None else _there(ground, diameter, at_mm, rng)
        if mask is None:
            raise InvalidRequestError(_no_room(ground, diameter, placed, number, at_mm))
        box, voxels = mask
        ground.labels.array[box.slices][voxels] = ground.id
    return ground.labels


def _asked_diameter(diameter_mm: float | None, volume_ml: float | None) -> float | None:
    if diameter_mm is not None and volume_ml is not None:
        raise InvalidRequestError("a tumour has a diameter or a volume; give one of diameter_mm and volume_ml")
    if volume_ml is not None:
        if not (np.isfinite(volume_ml) and volume_ml > 0):
            raise InvalidRequestError(f"a tumour of {volume_ml:g} ml is impossible; accepted: a positive volume in ml")
        return ball_mm(volume_ml)
    if diameter_mm is not None:
        check_diameter(diameter_mm)
    return diameter_mm


def _check_fits(ground: Ground, diameter: float | None) -> None:
    """Nothing, or the refusal of a tumour with more voxels than any piece of its host."""
    largest = max(ground.pieces, key=lambda piece: piece.num_voxels)
    if diameter is not None and num_voxels(ground.grid, diameter) > largest.num_voxels:
        names = " and ".join(ground.vocabulary.name(id) for id in largest.ids[:3])
        raise InvalidRequestError(
            f"{ground.row.name} of {diameter:.0f} mm ({ball_ml(diameter):.0f} ml) is larger than its organ: "
            f"{names} has {_ml(ground, largest.num_voxels):.0f} ml here"
        )


def _somewhere(ground: Ground, diameter: float | None, rng: np.random.Generator) -> tuple[Box, np.ndarray] | None:
    """The voxels of a tumour at a drawn place, None where it found none."""
    places: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, tuple[int, int, int]]] = {}
    for attempt in range(_TRIES):
        size = diameter if diameter is not None else _drawn_diameter(ground, rng)
        able = [piece for piece in ground.pieces if piece.num_voxels >= num_voxels(ground.grid, size)]
        weights = np.array([piece.num_voxels for piece in able], float)
        piece = able[int(rng.choice(len(able), p=weights / weights.sum()))]
        if piece.ids not in places:
            places[piece.ids] = coarse_depth(ground, piece)
        centre = _drawn_place(ground, piece, places[piece.ids], size, rng)
        found = None if centre is None else _grown(ground, piece.ids, centre, size, rng, _COMPACT + attempt / _TRIES)
        if found is not None:
            return found
    return None


def _drawn_diameter(ground: Ground, rng: np.random.Generator) -> float:
    """Between the ends of the row, evenly on a logarithmic scale, and no larger than a share of the host."""
    low, high = ground.row.diameter
    largest = max(piece.num_voxels for piece in ground.pieces)
    high = min(high, ball_mm(_LARGEST_SHARE * _ml(ground, largest)))
    return float(np.exp(rng.uniform(np.log(min(low, high)), np.log(high))))


def _drawn_place(
    ground: Ground,
    piece: Piece,
    places: tuple[np.ndarray, np.ndarray, tuple[int, int, int]],
    diameter: float,
    rng: np.random.Generator,
) -> Spacing3 | None:
    """A voxel of the piece (mm, RAS), deep enough for the tumour where the host is so thick; None without any."""
    inside, depth, steps = places
    thickest = float(depth[inside].max(initial=0))
    wanted = min(ground.row.margin + _DEPTH[ground.row.shape] * diameter / 2, _DEEPEST * thickest)
    if ground.row.bulge:
        wanted = min(wanted, thickest / 4)
    candidates = np.argwhere(inside & (depth >= wanted))
    if not len(candidates):
        return None
    coarse = candidates[int(rng.integers(len(candidates)))] * steps
    start = np.array([part.start for part in piece.slices])
    top = np.array([part.stop - 1 for part in piece.slices])
    shifted = np.minimum(start + coarse + rng.integers(0, steps), top)
    index = shifted if int(ground.labels.array[tuple(shifted)]) in piece.ids else start + coarse
    x, y, z = ground.grid.world(index).tolist()
    return x, y, z


def _there(
    ground: Ground, diameter: float | None, at_mm: Spacing3, rng: np.random.Generator
) -> tuple[Box, np.ndarray] | None:
    """The voxels of a tumour at a given place."""
    check_inside(ground.grid, at_mm)
    index = np.rint(ground.grid.index(np.array(at_mm))).astype(int)
    id = int(ground.labels.array[tuple(index)])
    if id not in ground.hosts:
        there = ground.vocabulary.name(id) if id in ground.vocabulary.ids else "background"
        host = ground.vocabulary.structure(ground.id).host
        raise InvalidRequestError(
            f"{ground.row.name} cannot lie at {shown_mm(at_mm)}, which is {there}; accepted: a place in {host}"
            f"{_nearest(ground, at_mm, None)}"
        )
    ids = next(piece.ids for piece in ground.pieces if id in piece.ids)
    x, y, z = ground.grid.world(index).tolist()
    room = Box.around(ground.grid, (x, y, z), ground.row.margin + max(ground.grid.spacing))
    offset = tuple((index - room.start).tolist())
    if not ground.allowed(room, ids)[offset]:
        raise InvalidRequestError(
            f"{shown_mm(at_mm)} is too near another lesion, or the border of its host, from which {ground.row.name} "
            f"keeps {ground.row.margin:g} mm{_nearest(ground, at_mm, ids)}"
        )
    for _ in range(_TRIES):
        size = diameter if diameter is not None else _drawn_diameter(ground, rng)
        found = _grown(ground, ids, (x, y, z), size, rng)
        if found is not None:
            return found
    return None


def _nearest(ground: Ground, at_mm: Spacing3, ids: tuple[int, ...] | None) -> str:
    """The nearest place that would do, in words; nothing where there is none within 40 mm."""
    box = Box.around(ground.grid, at_mm, 40.0)
    free = np.zeros(box.shape, bool)
    for piece in ground.pieces:
        if ids is None or piece.ids == ids:
            free |= ground.allowed(box, piece.ids) & np.isin(ground.labels.array[box.slices], piece.ids)
    voxels = np.argwhere(free)
    if not len(voxels):
        return ""
    world = ground.grid.world(voxels + box.start)
    x, y, z = world[int(((world - at_mm) ** 2).sum(axis=1).argmin())].tolist()
    return f", such as {shown_mm((x, y, z))}"


def _grown(
    ground: Ground,
    ids: tuple[int, ...],
    centre: Spacing3,
    diameter: float,
    rng: np.random.Generator,
    furthest: float = np.inf,
) -> tuple[Box, np.ndarray] | None:
    """The voxels of a tumour about a centre, in a box; None where there is too little room.

    That is also where it would have to reach further than so many radii.
    """
    grid, count = ground.grid, num_voxels(ground.grid, diameter)
    field = _field(ground, centre, ids, drawn_radius(grid, diameter), rng)
    room = field.restricted(ground.allowed_at(field.axes, centre, ids))
    level = room.level(_ROUGHLY * count * float(np.prod(grid.spacing)))
    if not np.isfinite(level) or (level > furthest and ground.row.shape != "lumen"):
        return None
    rim = ground.row.margin + max(grid.spacing)
    low, high = room.extent(_SLACK * level)
    box = Box.spanning(grid, centre, low - rim, high + rim).clipped()
    found = first_reached(field.at(box.axes), ground.allowed(box, ids), count)
    return None if found is None else (box, found)


def _field(ground: Ground, centre: Spacing3, ids: tuple[int, ...], radius: float, rng: np.random.Generator) -> Field:
    """How early a tumour of this row reaches the points about a centre."""
    if ground.row.shape == "elastic":
        return elastic_field(radius, rng)
    if ground.row.shape == "growth":
        return growth_field(radius, lambda axes: ground.allowed_at(axes, centre, ids), rng)
    return lumen_field(radius, lambda axes: ground.organ_at(axes, centre, ids), rng)


def _ml(ground: Ground, voxels: int) -> float:
    return voxels * float(np.prod(ground.grid.spacing)) / 1000


def _no_room(ground: Ground, diameter: float | None, placed: int, number: int, at_mm: Spacing3 | None) -> str:
    size = "" if diameter is None else f" of {diameter:.0f} mm ({ball_ml(diameter):.1f} ml)"
    where = "" if at_mm is None else f" at {shown_mm(at_mm)}"
    so_far = f" beside the {placed} placed of {number}" if placed else ""
    host = ground.vocabulary.structure(ground.id).host
    return (
        f"no room for {ground.row.name}{size}{where} in {host}{so_far}, {ground.row.margin:g} mm off its border, after "
        f"{_TRIES} tries; accepted: fewer or smaller ones" + (", or another place" if at_mm is not None else "")
    )
