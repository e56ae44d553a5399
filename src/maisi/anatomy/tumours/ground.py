"""Where a tumour may grow in a label map: its host, piece by piece, and what of it is free."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from maisi.anatomy.lesions import healthy_ids, lesion_ids
from maisi.anatomy.morphology import dilate, erode
from maisi.anatomy.tumours.lattice import Axes
from maisi.anatomy.tumours.shapes import Box
from maisi.anatomy.tumours.table import Tumour
from maisi.anatomy.vocabulary import Vocabulary
from maisi.errors import InvalidRequestError
from maisi.shapes import Spacing3
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, id_counts

_COARSE_POINTS = 60_000  # of a piece of the host in which places are looked for
_NUM_SHOWN = 8
_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, eq=False)
class Piece:
    """What one tumour may grow in: some structures of its host, their voxels in all, and the slices that hold them."""

    ids: tuple[int, ...]
    num_voxels: int
    slices: tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Ground:
    """The host of a tumour in a label map, whose array may change: what it holds of other structures stays."""

    labels: LabelMap
    row: Tumour
    vocabulary: Vocabulary

    @property
    def grid(self) -> Grid:
        return self.labels.grid

    @cached_property
    def id(self) -> int:
        """The id of the tumour."""
        return self.vocabulary.id(self.row.name)

    @cached_property
    def hosts(self) -> tuple[int, ...]:
        """The structures of the host, present or not."""
        return healthy_ids(self.vocabulary, self.id)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of the host that the map holds; raises InvalidRequestError where it holds none."""
        counts = id_counts(self.labels.array)
        present = [id for id in self.hosts if id < len(counts) and counts[id]]
        if not present:
            raise InvalidRequestError(self._hostless(np.flatnonzero(counts[1:]) + 1))
        boxes = ndimage.find_objects(self.labels.array)
        return tuple(
            Piece(ids, int(sum(counts[id] for id in ids)), _around_all([boxes[id - 1] for id in ids]))
            for ids in _grouped(present, self.row.within, self.vocabulary)
        )

    def piece_of(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids of the host that may be grown into from structures of it."""
        wanted = set(ids)
        groups = _grouped(self.hosts, self.row.within, self.vocabulary)
        return tuple(id for group in groups if wanted & set(group) for id in group)

    def organ(self, array: np.ndarray, ids: Iterable[int]) -> np.ndarray:
        """The mask of structures of the host and of all that grows in them."""
        return self._table({*ids, *self._guests})[array]

    def allowed(self, box: Box, ids: Iterable[int]) -> np.ndarray:
        """The voxels of a box that a tumour in these structures may take: host, off its border and off other lesions.

        The host goes on beyond the box as it is there: it should reach the margin further than the tumour.
        """
        part = self.labels.array[box.slices]
        organ, spacing = self.organ(part, ids), self.grid.spacing
        free = self._table(ids)[part] & erode(organ, self.row.margin, spacing)
        if self.row.bulge:
            free |= self._table(self._soft)[part] & dilate(organ, self.row.bulge, spacing)
        lesions = self._table(self._lesions)[part]
        return free & ~ndimage.binary_dilation(lesions, _TOUCHING) if lesions.any() else free

    def allowed_at(self, axes: Axes, centre_mm: Spacing3, ids: Iterable[int]) -> np.ndarray:
        """About the same at points whose axes are in mm from a centre, from the nearest voxels; False outside."""
        part, known = self._nearest(axes, centre_mm)
        organ, step = self.organ(part, ids) | ~known, [axis[1] - axis[0] for axis in axes]
        free = self._table(ids)[part]
        if self.row.margin and not organ.all():
            free &= ndimage.distance_transform_edt(organ, sampling=step) > self.row.margin
        if self.row.bulge:
            free |= self._table(self._soft)[part] & dilate(organ, self.row.bulge, step)
        return free & known

    def organ_at(self, axes: Axes, centre_mm: Spacing3, ids: Iterable[int]) -> np.ndarray:
        """The mask of an organ at points, from the nearest voxels; False outside."""
        part, known = self._nearest(axes, centre_mm)
        return self.organ(part, ids) & known

    def _nearest(self, axes: Axes, centre_mm: Spacing3) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the voxels nearest to points, and which of these lie in the volume."""
        places = [
            np.rint((axis + c - o) / s).astype(int)
            for axis, c, o, s in zip(axes, centre_mm, self.grid.origin, self.grid.spacing, strict=True)
        ]
        inside = [(p >= 0) & (p < n) for p, n in zip(places, self.grid.shape, strict=True)]
        nearest = [np.clip(p, 0, n - 1) for p, n in zip(places, self.grid.shape, strict=True)]
        known = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        return self.labels.array[np.ix_(*nearest)], known

    @cached_property
    def _lesions(self) -> tuple[int, ...]:
        return lesion_ids(self.vocabulary)

    @cached_property
    def _guests(self) -> tuple[int, ...]:
        """What grows in the same host: vessels and lesions."""
        hosts = set(self.hosts)
        having = [s for s in self.vocabulary.structures if s.host is not None]
        return tuple(s.id for s in having if hosts & set(healthy_ids(self.vocabulary, s.id)))

    @cached_property
    def _soft(self) -> tuple[int, ...]:
        return self.vocabulary.id("body"), self.vocabulary.id("fat")

    def _table(self, ids: Iterable[int]) -> np.ndarray:
        table = np.zeros(1 + np.iinfo(self.labels.array.dtype).max, bool)
        table[list(ids)] = True
        return table

    def _hostless(self, present: np.ndarray) -> str:
        host = self.vocabulary.structure(self.id).host
        names = [self.vocabulary.name(int(id)) for id in present if int(id) in self.vocabulary.ids]
        shown = ", ".join(names[:_NUM_SHOWN]) + (f" and {len(names) - _NUM_SHOWN} more" if names[_NUM_SHOWN:] else "")
        return f"{self.row.name} grows in {host}, which this label map does not hold; it holds {shown or 'nothing'}"


def coarse_depth(ground: Ground, piece: Piece) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Where a piece lies and how deep (mm), on every few voxels of its slices; and the steps, in voxels."""
    spacing = np.array(ground.grid.spacing)
    shape = np.array([part.stop - part.start for part in piece.slices])
    edge = float((np.prod(shape * spacing) / _COARSE_POINTS) ** (1 / 3))
    a, b, c = np.maximum(1, np.minimum(np.round(edge / spacing), shape // 4 + 1)).astype(int).tolist()
    part = ground.labels.array[piece.slices][::a, ::b, ::c]
    organ = ground.organ(part, piece.ids)
    padded = np.pad(organ, 1, mode="edge")
    if padded.all():
        depth = np.full(organ.shape, np.inf)
    else:
        depth = ndimage.distance_transform_edt(padded, sampling=spacing * (a, b, c))[1:-1, 1:-1, 1:-1]
    return np.isin(part, piece.ids), depth, (a, b, c)


def _grouped(ids: Iterable[int], within: str, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Ids that one tumour may spread over, by the row's `within`."""
    if within == "structure":
        return [(id,) for id in ids]
    groups: dict[str, list[int]] = {}
    for id in ids:
        side = vocabulary.name(id).partition(" ")[0]
        key = "" if within == "union" else side if side in ("left", "right") else vocabulary.name(id)
        groups.setdefault(key, []).append(id)
    return [tuple(group) for group in groups.values()]


def _around_all(boxes: list[tuple[slice, ...]]) -> tuple[slice, slice, slice]:
    x, y, z = (slice(min(b[k].start for b in boxes), max(b[k].stop for b in boxes)) for k in range(3))
    return x, y, z
