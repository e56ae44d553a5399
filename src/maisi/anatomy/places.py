"""Whether the structures of a label map lie where they can: wrong numbers and mirrored maps show by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maisi.anatomy.vocabulary import Place, Vocabulary
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

SAMPLING_MM = 3.0  # places and volumes are taken from every voxel or, on finer grids, from one in so many mm
WHOLE_WIDTH_MM = 280.0  # an image so wide shows a body, near its middle, and no single organ
OFF_MIDDLE_MM = 50.0  # as far from the middle on the other side no organ of one side lies
_WAYS = (("left of", "right of"), ("behind", "in front of"), ("below", "above"))


@dataclass(frozen=True)
class Footprint:
    """What of a structure a label map shows: volume, middle (mm, RAS), and the axes on which the border cuts it."""

    ml: float
    middle: tuple[float, float, float]
    is_cut: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def joined(cls, parts: "Sequence[Footprint]") -> "Footprint":
        """The footprint of several structures taken as one."""
        ml = sum(part.ml for part in parts)
        x, y, z = (sum(part.ml * part.middle[axis] for part in parts) / ml for axis in range(3))
        cut_x, cut_y, cut_z = (any(part.is_cut[axis] for part in parts) for axis in range(3))
        return cls(ml, (x, y, z), (cut_x, cut_y, cut_z))


@dataclass(frozen=True)
class Misplacement:
    """Something in a label map that no body has, in words; `excess` is by how much (1 = just)."""

    ids: tuple[int, ...]
    words: str
    excess: float


def footprints(labels: LabelMap) -> dict[int, Footprint]:
    """The footprint of every id of a label map but 0; structures smaller than the sampling may be missed."""
    grid = labels.grid
    steps = [max(1, int(SAMPLING_MM / s + 1e-6)) for s in grid.spacing]
    ids = np.ascontiguousarray(labels.array[tuple(slice(step // 2, None, step) for step in steps)])
    labelled = np.flatnonzero(ids)
    if not labelled.size:
        return {}
    found = ids.reshape(-1)[labelled]
    counts = np.bincount(found)
    spacing = np.multiply(grid.spacing, steps)
    start = grid.world(np.array([step // 2 for step in steps]))
    sums = [np.bincount(found, weights=index) for index in np.unravel_index(labelled, ids.shape)]
    faces = [{*np.unique(ids.take(0, axis)), *np.unique(ids.take(-1, axis))} for axis in range(3)]
    footprint = {}
    for id in np.flatnonzero(counts):
        x, y, z = (float(start[axis] + spacing[axis] * sums[axis][id] / counts[id]) for axis in range(3))
        cut_x, cut_y, cut_z = (id in face for face in faces)
        ml = float(counts[id] * spacing.prod() / 1000)
        footprint[int(id)] = Footprint(ml, (x, y, z), (cut_x, cut_y, cut_z))
    return footprint


def middle_of(grid: Grid) -> float | None:
    """The x (mm, RAS) about which a body lies in an image as wide as a trunk; None for a narrower image."""
    middle = (np.array(grid.shape) - 1) / 2
    return float(grid.world(middle)[0]) if grid.fov_mm[0] >= WHOLE_WIDTH_MM else None


def misplacements(
    found: Mapping[int, Footprint], vocabulary: Vocabulary, middle: float | None = None
) -> tuple[Misplacement, ...]:
    """What is larger than it can be, on the wrong side of another structure, too far from it, or never there at all.

    With `middle`, see `middle_of`, also what lies on the wrong side of it. The worst comes first.
    """
    rules = vocabulary.place_rules
    placed = {
        id: (footprint, vocabulary.places_by_id[id])
        for id, footprint in sorted(found.items())
        if id in vocabulary.places_by_id and footprint.ml >= rules.fragment * vocabulary.places_by_id[id].ml[0]
    }
    wrong = [
        Misplacement((id,), f"{vocabulary.name(id)} of {footprint.ml:.0f} ml", footprint.ml / place.ml[1])
        for id, (footprint, place) in placed.items()
        if footprint.ml > place.ml[1]
    ]
    wrong += _tiny(found, vocabulary)
    reserved = [vocabulary.structure(id) for id in found if vocabulary.structure(id).is_dummy]
    wrong += [Misplacement((s.id,), f"{s.name} ({s.id}), which MAISI reserves and never fills", 1.0) for s in reserved]
    wrong += _misplaced_pairs(placed, vocabulary)
    wrong += [] if middle is None else _on_the_other_side(placed, vocabulary, middle)
    return tuple(sorted(wrong, key=lambda each: -each.excess))


def first_lumbar(found: Mapping[int, Footprint], vocabulary: Vocabulary) -> tuple[float, float, float] | None:
    """Where the first lumbar vertebra lies (mm, RAS), or would, by the median of all structures that no border cuts.

    None where nothing tells it.
    """
    offsets = [
        [at - (low + high) / 2 for at, (low, high) in zip(footprint.middle, (place.x, place.y, place.z), strict=True)]
        for id, footprint in found.items()
        if (place := vocabulary.places_by_id.get(id)) is not None and not any(footprint.is_cut)
    ]
    if not offsets:
        return None
    x, y, z = (float(each) for each in np.median(offsets, axis=0))
    return x, y, z


def unlikeness(found: Mapping[int, Footprint], vocabulary: Vocabulary) -> float:
    """How far the volumes are from the usual ones: the sum of their ratios' logarithms, 1 for e times too large."""
    usual = {id: place.ml[0] for id, place in vocabulary.places_by_id.items()}
    return sum(abs(np.log(footprint.ml / usual[id])) for id, footprint in found.items() if id in usual)


def _tiny(found: Mapping[int, Footprint], vocabulary: Vocabulary) -> list[Misplacement]:
    """The structures far below their usual volume, where all that no border cuts are: wrong numbers."""
    growths = {*vocabulary.group("tumours"), *vocabulary.group("cysts")}
    shares = {
        id: footprint.ml / vocabulary.places_by_id[id].ml[0]
        for id, footprint in found.items()
        if id in vocabulary.places_by_id and id not in growths and not any(footprint.is_cut)
    }
    tiny = [id for id, share in shares.items() if share < vocabulary.place_rules.tiny]
    if len(tiny) < max(2, len(shares)):
        return []
    return [Misplacement((id,), f"{vocabulary.name(id)} of only {found[id].ml:.1f} ml", 1.0) for id in tiny]


def _misplaced_pairs(placed: Mapping[int, tuple[Footprint, Place]], vocabulary: Vocabulary) -> list[Misplacement]:
    """The pairs of structures that are further from each other, or on another side, than all that people differ by."""
    if len(placed) < 2:
        return []
    rules, ids = vocabulary.place_rules, list(placed)
    middles = np.array([footprint.middle for footprint, _ in placed.values()])
    reaches = np.array([_reach(footprint, place, vocabulary) for footprint, place in placed.values()])
    one, other = np.triu_indices(len(ids), 1)
    apart = middles[one] - middles[other]
    least = reaches[one, :, 0] - reaches[other, :, 1]
    most = reaches[one, :, 1] - reaches[other, :, 0]
    least *= np.where(least > 0, rules.near, rules.far)
    most *= np.where(most < 0, rules.near, rules.far)
    excess = np.maximum(least - apart, apart - most) - rules.slack_mm
    wrong = []
    for k in np.flatnonzero(excess.max(axis=1) > 0):
        axis = int(excess[k].argmax())
        pair, distance = (ids[one[k]], ids[other[k]]), float(apart[k, axis])
        way = _WAYS[axis][distance > 0]
        words = f"{vocabulary.name(pair[0])} {abs(distance):.0f} mm {way} {vocabulary.name(pair[1])}"
        wrong.append(Misplacement(pair, words, 1 + float(excess[k, axis]) / rules.slack_mm))
    return wrong


def _on_the_other_side(
    placed: Mapping[int, tuple[Footprint, Place]], vocabulary: Vocabulary, middle: float
) -> list[Misplacement]:
    """The structures of one side of the body that lie on the other side of the image."""
    wrong = []
    for id, (footprint, place) in placed.items():
        side = 1 if place.x[0] > 0 else -1 if place.x[1] < 0 else 0
        off = -side * (footprint.middle[0] - middle)
        if side and off > OFF_MIDDLE_MM and not any(footprint.is_cut):
            words = f"{vocabulary.name(id)} {off:.0f} mm {'left' if side > 0 else 'right'} of the middle of the image"
            wrong.append(Misplacement((id,), words, off / OFF_MIDDLE_MM))
    return wrong


def _reach(footprint: Footprint, place: Place, vocabulary: Vocabulary) -> list[tuple[float, float]]:
    """From where to where on each axis the middle of what is shown of a structure may lie."""
    rules, reach = vocabulary.place_rules, []
    for (low, high), half, is_cut in zip((place.x, place.y, place.z), place.half, footprint.is_cut, strict=True):
        is_part = is_cut or footprint.ml < rules.part * place.ml[0]
        room = half if is_part else rules.turned * half * any(footprint.is_cut)
        reach.append((low - room, high + room))
    return reach
