"""What is wrong with a label map that a network drew, put right: specks, holes, lesions that nobody asked for.

Nothing is given a fixed neighbour's name: what is taken away becomes what lies next to it, a lesion what it grew in.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache
from importlib.resources import files

import numpy as np
import yaml
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.lesions import lesion_ids, without_structures
from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, id_counts

TOUCHING = np.ones((3, 3, 3), bool)  # pieces that meet at an edge or a corner are one: thin structures slant


class MendingRules(Frozen):
    """`mending.yaml`."""

    one_piece: tuple[str, ...]
    several: tuple[str, ...]
    least_share: float
    speck_ml: float
    remnant_voxels: int
    remnant_share: float

    def whole_ids(self, vocabulary: Vocabulary) -> frozenset[int]:
        """The structures that are of one piece."""
        of_one = {id for name in self.one_piece for id in vocabulary.members(name)}
        parted = {id for name in self.several if name not in vocabulary.groups for id in vocabulary.members(name)}
        return frozenset(of_one - parted - set(lesion_ids(vocabulary)))


@lru_cache(maxsize=1)
def mending_rules() -> MendingRules:
    """The rules that ship with the package."""
    text = files("maisi.anatomy").joinpath("mending.yaml").read_text(encoding="utf-8")
    return MendingRules.model_validate(yaml.safe_load(text))


def mended(
    labels: LabelMap, vocabulary: Vocabulary, *, lesions: Collection[int] = (), absent: Collection[int] = ()
) -> LabelMap:
    """The map with one body without holes, whole structures without specks, and of lesions only those asked for.

    `lesions` are the ids of those; they are not touched. Structures in `absent` become what lies next to them.
    """
    unasked = set(lesion_ids(vocabulary)) - set(lesions)
    ids = without_structures(labels.array.astype(np.uint8), unasked, vocabulary)
    ids = _nearest_instead(ids, np.isin(ids, list(absent)), lesions)
    ids = _one_body(ids, labels, vocabulary)
    ids = _nearest_instead(ids, _specks(ids, labels.grid, vocabulary), lesions)
    return LabelMap(_without_holes(ids, labels.grid, vocabulary), labels.grid)


def _one_body(ids: np.ndarray, labels: LabelMap, vocabulary: Vocabulary) -> np.ndarray:
    """The ids of the largest piece and of others as large as an arm; holes are body."""
    numbered, sizes = morphology.parts(ids > 0)
    sizes[0] = 0
    keep = (sizes == sizes.max()) | (sizes * np.prod(labels.grid.spacing) >= 1000 * vocabulary.body.piece_ml)
    keep[0] = False
    kept = keep[numbered]
    holes = _enclosed(kept)
    return np.where(holes, np.uint8(vocabulary.id("body")), np.where(kept, ids, np.uint8(0)))


def _specks(ids: np.ndarray, grid: Grid, vocabulary: Vocabulary) -> np.ndarray:
    """Where pieces of a structure lie that are none: all but the largest, or those far smaller than it.

    Pieces that the border of the map cuts may meet beyond it, and need not be one. A few voxels of what usually has
    many are none of it either.
    """
    rules, specks = mending_rules(), np.zeros(ids.shape, bool)
    whole = rules.whole_ids(vocabulary)
    free = {vocabulary.id("body"), vocabulary.id("fat"), vocabulary.id("air"), *lesion_ids(vocabulary)}
    for id, box in _boxes(ids):
        if id in free:
            continue
        numbered, count = ndimage.label(ids[box] == id, TOUCHING)
        if _is_remnant(id, int(np.count_nonzero(numbered)), grid, vocabulary):
            specks[box] |= numbered > 0
        if count < 2:
            continue
        sizes = np.bincount(numbered.ravel())
        sizes[0] = 0
        small = sizes < min(rules.least_share * sizes.max(), _speck_voxels(grid))
        if id in whole:
            small |= ~_cut(numbered, box, ids.shape)
            small[np.argmax(sizes)] = False
        small[0] = False
        specks[box] |= small[numbered]
    return specks


def _is_remnant(id: int, voxels: int, grid: Grid, vocabulary: Vocabulary) -> bool:
    """Whether so many voxels are too few, and too little, to be a structure."""
    rules, place = mending_rules(), vocabulary.places_by_id.get(id)
    ml = voxels * float(np.prod(grid.spacing)) / 1000
    return place is not None and voxels <= rules.remnant_voxels and ml < rules.remnant_share * place.ml[0]


def _cut(numbered: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Whether the border of the map cuts each of the numbered pieces in a box."""
    found = np.zeros(int(numbered.max()) + 1, bool)
    for axis, (part, n) in enumerate(zip(box, shape, strict=True)):
        found[np.unique(numbered.take(0, axis))] |= part.start == 0
        found[np.unique(numbered.take(-1, axis))] |= part.stop == n
    return found


def _speck_voxels(grid: Grid) -> float:
    """How many voxels a speck has at most."""
    return 1000 * mending_rules().speck_ml / float(np.prod(grid.spacing))


def _without_holes(ids: np.ndarray, grid: Grid, vocabulary: Vocabulary) -> np.ndarray:
    """A speck of plain body or fat that a structure of one piece encloses becomes part of it."""
    filled, plain = ids.copy(), [0, vocabulary.id("body"), vocabulary.id("fat")]
    whole = mending_rules().whole_ids(vocabulary)
    for id, box in _boxes(ids):
        if id in whole:
            shape = ids[box] == id
            holes = _enclosed(shape) & np.isin(ids[box], plain)
            numbered, sizes = morphology.parts(holes)
            filled[box][holes & (sizes <= max(1.0, _speck_voxels(grid)))[numbered]] = id
    return filled


def _enclosed(mask: np.ndarray) -> np.ndarray:
    """What lies outside of a mask and cannot reach its border over faces."""
    around, _ = ndimage.label(~np.pad(mask, 1))
    inner = around[1:-1, 1:-1, 1:-1]
    return (inner > 0) & (inner != around[0, 0, 0])


def _nearest_instead(ids: np.ndarray, taken: np.ndarray, lesions: Collection[int]) -> np.ndarray:
    """The ids with each voxel of `taken` as the nearest structure that stays and is no lesion."""
    if not taken.any():
        return ids
    stays = (ids > 0) & ~taken & ~np.isin(ids, list(lesions))
    if not stays.any():
        return np.where(taken, np.uint8(0), ids)
    box = _around(taken, ids.shape)
    if not stays[box].any():
        box = tuple(slice(0, n) for n in ids.shape)
    nearest = ndimage.distance_transform_edt(~stays[box], return_distances=False, return_indices=True)
    result = ids.copy()
    result[box] = np.where(taken[box], ids[box][tuple(nearest)], ids[box])
    return result


def _around(mask: np.ndarray, shape: tuple[int, ...], margin: int = 8) -> tuple[slice, ...]:
    """The box of a mask and a margin."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, shape, strict=True))


def _boxes(ids: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Every id but 0 and the box that holds it."""
    counts = id_counts(ids)
    for id, box in enumerate(ndimage.find_objects(ids), start=1):
        if box is not None and counts[id]:
            yield id, box
