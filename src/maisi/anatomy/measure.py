"""What a label map, and a CT with it, shows of each structure: size, pieces, neighbours, Hounsfield units."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maisi.space.volume import LabelMap, Volume, check_same_grid

CORE_VOXELS = 27
"""A structure with fewer voxels inside, all of whose neighbours belong to it too, is judged by all of its voxels."""

_MIDDLE = (16.0, 50.0, 84.0)  # percentiles: the median, and what lies within a standard deviation of it
_IDS = 256
_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Extent:
    """The size of a structure, and whether the border of the field of view cuts it."""

    voxels: int
    ml: float
    is_cut: bool
    box: _Box


@dataclass(frozen=True)
class Pieces:
    """The parts of a structure that touch by a face, an edge or a corner, and the share of the largest."""

    count: int
    largest: float


@dataclass(frozen=True)
class Look:
    """Hounsfield units of a structure: median and spread (half of what the middle 68 % span) of its core.

    The core are the voxels whose six neighbours belong to the structure too: no partial volume. Where it has fewer than
    `CORE_VOXELS`, `is_core` is False and the values are of all voxels.
    """

    voxels: int
    median: float
    spread: float
    is_core: bool


@dataclass(frozen=True)
class Faces:
    """Faces between voxels of two structures: how many, and the mean step in HU from the first to the second."""

    count: int
    step: float


def extents(labels: LabelMap) -> dict[int, Extent]:
    """The extent of every id of a label map but 0."""
    spacing, shape = labels.grid.spacing, labels.grid.shape
    counts = np.bincount(labels.array.ravel(), minlength=_IDS)
    boxes = ndimage.find_objects(labels.array.astype(np.int32, copy=False))
    return {
        id: Extent(
            int(counts[id]),
            float(counts[id] * np.prod(spacing) / 1000),
            any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True)),
            box,
        )
        for id, box in enumerate(boxes, start=1)
        if box is not None
    }


def pieces(labels: LabelMap, id: int, box: _Box) -> Pieces:
    """The pieces of a structure that the map shows in `box`."""
    numbered, count = ndimage.label(labels.array[box] == id, np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    return Pieces(int(count), float(sizes.max() / sizes.sum()))


def looks(volume: Volume, labels: LabelMap, of: Collection[int] | None = None) -> dict[int, Look]:
    """The look of every id of a label map but 0, or of those in `of`; raises `InvalidLabelsError` off the grid."""
    check_same_grid(labels, volume)
    inside = core(labels.array)
    found = {}
    for id, extent in extents(labels).items():
        if of is None or id in of:
            own, values = labels.array[extent.box] == id, volume.array[extent.box]
            deep = own & inside[extent.box]
            is_core = int(deep.sum()) >= CORE_VOXELS
            chosen = values[deep if is_core else own]
            low, middle, high = np.percentile(chosen, _MIDDLE).tolist()
            found[id] = Look(len(chosen), middle, (high - low) / 2, is_core)
    return found


def core(ids: np.ndarray) -> np.ndarray:
    """The voxels whose six neighbours have their id; beyond the border a map continues as it is there."""
    inside = np.ones(ids.shape, bool)
    for lower, upper in _sides(ids.shape):
        same = ids[lower] == ids[upper]
        inside[lower] &= same
        inside[upper] &= same
    return inside


def contacts(labels: LabelMap) -> dict[tuple[int, int], int]:
    """How many faces every two structures share, 0 included, both ways: (a, b) and (b, a)."""
    counts = np.zeros((_IDS, _IDS), np.int64)
    for pairs, _ in _steps(labels.array, None):
        counts += np.bincount(pairs, minlength=_IDS * _IDS).reshape(_IDS, _IDS)
    counts += counts.T
    return {(int(a), int(b)): int(counts[a, b]) for a, b in zip(*np.nonzero(counts), strict=True)}


def faces(volume: Volume, labels: LabelMap) -> dict[tuple[int, int], Faces]:
    """The faces between every two structures that touch, 0 included, both ways: (a, b) and (b, a)."""
    check_same_grid(labels, volume)
    sums = np.zeros((_IDS, _IDS))
    for pairs, step in _steps(labels.array, volume.array):
        sums += np.bincount(pairs, weights=step, minlength=_IDS * _IDS).reshape(_IDS, _IDS)
    sums -= sums.T
    return {(a, b): Faces(count, float(sums[a, b] / count)) for (a, b), count in contacts(labels).items()}


def _steps(ids: np.ndarray, values: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """For each axis the pairs of ids (first x 256 + second) that meet, and the steps in value between them."""
    for lower, upper in _sides(ids.shape):
        at = ids[lower] != ids[upper]
        pairs = ids[lower][at].astype(np.int64) * _IDS + ids[upper][at]
        yield pairs, None if values is None else values[upper][at] - values[lower][at]


def _sides(shape: tuple[int, ...]) -> Iterator[tuple[_Box, _Box]]:
    """For each axis the voxels that have a next one, and these."""
    for axis in range(3):
        lower, upper = [slice(None)] * 3, [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, shape[axis] - 1), slice(1, None)
        yield (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2])
