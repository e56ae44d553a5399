"""The tumours of a label map, moved, turned, resized and bent within their organs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from maisi.anatomy.lesions import without_structures
from maisi.anatomy.morphology import parts
from maisi.anatomy.tumours.ground import Ground
from maisi.anatomy.tumours.lattice import Axes, Field, lattice_axes, noise
from maisi.anatomy.tumours.shapes import Box, first_reached
from maisi.anatomy.tumours.table import Moves, tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.shapes import Spacing3
from maisi.space.volume import LabelMap, id_counts

_TRIES = 40  # for one tumour; the last ones hardly change it
_POINTS, _ROUGH_POINTS = (30, 100), 24  # along each axis of the field of a changed tumour
_ROUGHNESS = 0.4  # by which the share that lies inside may differ on the few points, in the last try
_SLACK = 0.25  # of its reach, by which a tumour may spread beyond its form where it is hemmed in
_SURFACE_POINTS = 1_000_000
_BEND_PERIOD = 0.6  # of the bends, in half widths of the tumour


def augment_tumours(
    labels: LabelMap,
    rng: np.random.Generator,
    *,
    tumours: Iterable[str | int] | None = None,
    strength: float = 1.0,
    vocabulary: Vocabulary | None = None,
) -> LabelMap:
    """The label map with each of its tumours, part by part, varied as its row of `tumours.yaml` says (Figure S2).

    The place that a tumour leaves is filled by its host (`without_structures`); where it comes to lie it takes voxels
    of its host alone, and of the same bone, lung or kidney. So host and tumour together keep each of their voxels, and
    nothing else changes. `tumours` chooses some by id or name; without, all that the map holds and the table knows.
    `strength` scales shifts, turns, bends and changes of size. The volume of a part follows its drawn scale to a tenth.

    Raises InvalidRequestError for a map without any such tumour, for one that lies in no host, and for one that found
    no place after a bounded number of ever smaller changes.
    """
    vocabulary = vocabulary or load_vocabulary()
    if not (np.isfinite(strength) and strength >= 0):
        raise InvalidRequestError(f"a strength of {strength:g} is impossible; accepted: 0 or more")
    result = replace(labels, array=labels.array.copy())
    for id in _chosen(labels, tumours, vocabulary):
        anywhere = tumour_named(id, vocabulary).model_copy(update={"margin": 0.0, "bulge": 0.0})
        _vary(Ground(result, anywhere, vocabulary), strength, rng)
    return result


def _chosen(labels: LabelMap, tumours: Iterable[str | int] | None, vocabulary: Vocabulary) -> list[int]:
    """The ids of the tumours to vary, ascending; all of them are present."""
    present = vocabulary.check_ids(labels.array)
    growths = [id for id in present if id in vocabulary.group("tumours")]
    if tumours is None:
        wanted = growths
    else:
        wanted = sorted({vocabulary.id(tumour_named(each, vocabulary).name) for each in tumours})
    missing = [vocabulary.name(id) for id in wanted if id not in present]
    if missing or not wanted:
        has = f"it holds {', '.join(vocabulary.name(id) for id in growths)}" if growths else "new ones can be planted"
        raise InvalidRequestError(f"this label map holds no {' and no '.join(missing) or 'tumour'} to vary; {has}")
    return wanted


@dataclass(frozen=True, eq=False)
class _Part:
    """One connected part of a tumour: its box, its voxels there, and the host structures that take its place."""

    box: Box
    mask: np.ndarray
    ids: tuple[int, ...]


def _vary(ground: Ground, strength: float, rng: np.random.Generator) -> None:
    """Take out all parts of a tumour and put each back elsewhere, the largest first."""
    found = _taken_out(ground)
    for number, part in enumerate(found, start=1):
        placed = _placed(ground, part, strength, rng)
        if placed is None:
            raise InvalidRequestError(
                f"{ground.row.name}, part {number} of {len(found)} ({int(part.mask.sum())} voxels), found no place in "
                f"its organ after {_TRIES} tries; accepted: a tumour that leaves room in its host"
            )
        box, voxels = placed
        ground.labels.array[box.slices][voxels] = ground.id


def _taken_out(ground: Ground) -> list[_Part]:
    """The parts of the tumour, largest first, whose voxels now hold their host."""
    array, grid = ground.labels.array, ground.grid
    around = _with_rim(ndimage.find_objects(array == ground.id, max_label=1)[0], grid.shape)
    before = array[around].copy()
    if not np.isin(before, ground.hosts).any():
        host = ground.vocabulary.structure(ground.id).host
        raise InvalidRequestError(
            f"{ground.row.name} lies in no {host} here; accepted: a label map that holds its host"
        )
    healthy = without_structures(before, (ground.id,), ground.vocabulary)
    numbered, sizes = parts(before == ground.id)
    array[around] = healthy
    found = []
    for number, inner in sorted(enumerate(ndimage.find_objects(numbered), start=1), key=lambda pair: -sizes[pair[0]]):
        mask = numbered[inner] == number
        ids = np.flatnonzero(id_counts(healthy[inner][mask])).tolist()
        start = [a.start + b.start for a, b in zip(around, inner, strict=True)]
        middle = grid.world(np.array(ndimage.center_of_mass(mask)) + start)
        box = Box(grid, _three(start), _three(mask.shape), (float(middle[0]), float(middle[1]), float(middle[2])))
        found.append(_Part(box, mask, ground.piece_of(ids)))
    return found


def _with_rim(part: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(0, s.start - 2), min(n, s.stop + 2)) for s, n in zip(part, shape, strict=True))


def _three(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _placed(ground: Ground, part: _Part, strength: float, rng: np.random.Generator) -> tuple[Box, np.ndarray] | None:
    """The voxels of a part after a change, in a box; with every try that does not fit the changes get smaller."""
    surface, moves, num = _Surface.of(part), ground.row.moves, int(np.count_nonzero(part.mask))
    num_points = round(float(np.clip(2 * surface.reach_mm / max(surface.detail_mm, *ground.grid.spacing), *_POINTS)))
    for attempt in range(_TRIES):
        change = _Change.drawn(moves, strength * (1 - attempt / _TRIES), rng)
        count = max(1, round(change.growth * num))
        x, y, z = (np.array(part.box.centre_mm) + change.shift).tolist()
        volume = count * float(np.prod(ground.grid.spacing))
        rough = _share_inside(ground, part.ids, change.applied(surface, _ROUGH_POINTS), (x, y, z), volume)
        if rough < moves.keep - _ROUGHNESS * attempt / _TRIES:
            continue
        field = change.applied(surface, num_points)
        low, high = field.extent(field.level(volume) + _SLACK * surface.reach_mm)
        box = Box.spanning(ground.grid, (x, y, z), low, high).clipped()
        values = field.at(box.axes)
        allowed = ground.allowed(box, part.ids)
        if np.count_nonzero(allowed & (values <= _lowest(values, count))) < moves.keep * count:
            continue
        found = first_reached(values, allowed, count)
        if found is not None:
            return box, found
    return None


def _lowest(values: np.ndarray, count: int) -> float:
    """The largest of the `count` lowest values; of all, where there are fewer."""
    return float(np.partition(values.ravel(), min(count, values.size) - 1)[min(count, values.size) - 1])


def _share_inside(ground: Ground, ids: tuple[int, ...], field: Field, centre_mm: Spacing3, volume_mm3: float) -> float:
    """About how much of a tumour of this volume would lie in these structures, seen on the points of its field."""
    reached = field.values <= field.level(volume_mm3)
    inside = ground.allowed_at(field.axes, centre_mm, ids)
    return float(np.count_nonzero(reached & inside) / np.count_nonzero(reached))


@dataclass(frozen=True, eq=False)
class _Surface:
    """How far (mm) the points around a part are from its surface, less than 0 inside.

    Also how far it reaches from its middle, and the distance of points that show its form.
    """

    distance: np.ndarray
    axes: Axes
    reach_mm: float
    detail_mm: float

    @classmethod
    def of(cls, part: _Part) -> "_Surface":
        spacing = np.array(part.box.grid.spacing)
        voxels = np.argwhere(part.mask) * spacing + [axis[0] for axis in part.box.axes]
        reach = float(np.linalg.norm(voxels, axis=1).max()) + float(spacing.max())
        rim = (np.ceil(_SLACK * reach / spacing) + 1).astype(int)
        padded = np.pad(part.mask, [(n, n) for n in rim.tolist()])
        steps = np.full(3, max(1, round((padded.size / _SURFACE_POINTS) ** (1 / 3))))
        mask = padded[tuple(slice(None, None, n) for n in steps.tolist())]
        mask = mask if mask.any() else padded
        steps = steps if mask is not padded else np.ones(3, int)
        outside, inside = (ndimage.distance_transform_edt(each, sampling=spacing * steps) for each in (~mask, mask))
        x, y, z = (
            axis[0] + s * (k * np.arange(n) - r)
            for axis, s, k, n, r in zip(part.box.axes, spacing, steps, mask.shape, rim, strict=True)
        )
        return cls(outside - inside, (x, y, z), reach, float(inside[mask].mean()) / 2)

    def at(self, points: np.ndarray) -> np.ndarray:
        """The distance at points (3, ...) in mm from the part's middle; beyond what is known, that at its border."""
        index = [(p - axis[0]) / (axis[1] - axis[0]) for p, axis in zip(points, self.axes, strict=True)]
        return np.asarray(ndimage.map_coordinates(self.distance, index, order=1, mode="nearest"))


@dataclass(frozen=True, eq=False)
class _Change:
    """A shift (mm), a turn (3, 3), factors of three axes, and a bend (mm) of a form that a seed tells."""

    shift: np.ndarray
    turn: np.ndarray
    scale: np.ndarray
    bend: float
    seed: int

    @classmethod
    def drawn(cls, moves: Moves, strength: float, rng: np.random.Generator) -> "_Change":
        """A change of a strength, 1 being what the table says; axes and turns change by no more than that."""
        shift, turn, scale = rng.uniform(-1, 1, (3, 3))
        least = min(strength, 1.0)
        return cls(
            strength * moves.shift * shift,
            _rotation(np.deg2rad(moves.turn) * least * turn),
            1 + moves.scale * least * scale,
            strength * moves.bend,
            int(rng.integers(2**63)),
        )

    @property
    def growth(self) -> float:
        """The factor of the volume."""
        return float(np.prod(self.scale))

    def applied(self, surface: _Surface, num_points: int) -> Field:
        """How far the points about the new middle are from the changed surface."""
        rng = np.random.default_rng(self.seed)
        axes = lattice_axes(surface.reach_mm * max(1.0, *self.scale) + self.bend, num_points)
        unit: Axes = tuple(axis / axes[0][-1] for axis in axes)
        bends = np.stack([noise(unit, _BEND_PERIOD, 1.0, rng) for _ in range(3)])
        points = np.stack(np.meshgrid(*axes, indexing="ij")) + self.bend * bends
        before = np.tensordot(self.turn.T, points, axes=(1, 0)) / self.scale[:, None, None, None]
        return Field(axes, surface.at(before))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Turns about x, then y, then z, by these angles (radians)."""
    matrix = np.eye(3)
    for k, angle in enumerate(angles):
        i, j = (k + 1) % 3, (k + 2) % 3
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix
