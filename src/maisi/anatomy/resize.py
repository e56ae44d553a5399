"""A structure of a label map brought to a volume, or taken out; its neighbours give way or move in.

A surface moves by signed distance in mm: a structure grows over what it may displace, nearest and softest first, and
shrinks from its surface inward without coming apart. Rules are in `sizes.yaml`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.morphology import IN_PLANE, close_mask, erode, fill_slices, parts
from maisi.anatomy.sizes import ChangeRules, size_rules
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary
from maisi.errors import InvalidAnatomyError
from maisi.shapes import Spacing3, in_words
from maisi.space.volume import LabelMap

Box: TypeAlias = tuple[slice, slice, slice]

MOST_ROUNDS = 12
ENOUGH_VOXELS = 8  # fewer tell nothing of a structure that came apart
LEAST_OF_LESION = 0.8  # voxels


def members_of(id: int, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids that a structure consists of: of `lungs` and `skeleton` the lobes and bones too, of others itself."""
    structure = vocabulary.structure(id)
    groups = [group for group in structure.groups if "tissues" in structure.groups and group != "tissues"]
    return tuple(sorted({id, *(each for group in groups for each in vocabulary.group(group))}))


def mask_of(labels: LabelMap, id: int, vocabulary: Vocabulary) -> np.ndarray:
    """Where a structure is, with all that is named inside of it: lesions and vessels that have it as their host."""
    members = members_of(id, vocabulary)
    names = {vocabulary.name(each) for each in members}
    inside = [s.id for s in vocabulary.structures if s.host in names and s.id not in members]
    return np.isin(labels.array, [*members, *inside])


def volume_ml(mask: np.ndarray, labels: LabelMap) -> float:
    """The volume of a mask on the grid of a label map."""
    return float(np.count_nonzero(mask) * np.prod(labels.grid.spacing) / 1000)


def is_cut(mask: np.ndarray, labels: LabelMap) -> bool:
    """Whether the border of the field of view cuts a structure, so that its volume is not known."""
    spacing = np.array(labels.grid.spacing)
    area = 0.0
    for axis in range(3):
        face = float(np.prod(np.delete(spacing, axis)))
        area += face * sum(np.count_nonzero(mask.take(end, axis)) for end in (0, -1))
    return area > size_rules().change.cut * (1000 * volume_ml(mask, labels)) ** (2 / 3)


def resized(labels: LabelMap, id: int, ml: float, vocabulary: Vocabulary, keep: Collection[int] = ()) -> LabelMap:
    """The label map with a structure of `ml` millilitres; what is in `keep` neither gives nor takes.

    Raises `InvalidAnatomyError` where the structure is absent, where the border cuts it, and where it cannot have that
    volume, with the largest that it can have.
    """
    name, mask = vocabulary.name(id), mask_of(labels, id, vocabulary)
    if not mask.any():
        raise InvalidAnatomyError(f"there is no {name} to bring to {ml:.3g} ml")
    if is_cut(mask, labels):
        raise InvalidAnatomyError(
            f"the border of the field of view cuts the {name}: its volume is not known; accepted: {name}=any, or a "
            "field of view that holds it"
        )
    check_voxels(id, ml, labels.grid.spacing, vocabulary)
    wanted = round(ml * 1000 / float(np.prod(labels.grid.spacing)))
    change = _Change.around(labels, mask, id, vocabulary, frozenset(keep))
    if wanted > np.count_nonzero(mask):
        return change.grown(wanted)
    return change.shrunk(wanted)


def check_voxels(id: int, ml: float, spacing: Spacing3, vocabulary: Vocabulary) -> None:
    """Nothing, or the refusal of a volume (ml) of too few voxels (mm): `ENOUGH_VOXELS` of an organ.

    A lesion may be of one voxel, which is at most 25 % more than was asked for.
    """
    voxels = ml * 1000 / float(np.prod(spacing))
    is_lesion = id in lesion_ids(vocabulary)
    least = LEAST_OF_LESION if is_lesion else ENOUGH_VOXELS
    if (voxels if is_lesion else round(voxels)) < least:
        raise InvalidAnatomyError(
            f"{vocabulary.name(id)} of {ml:.3g} ml is {voxels:.3g} voxels of {in_words(spacing)} mm; accepted: {least} "
            "or more, so a larger size or a finer --spacing"
        )


def removed(labels: LabelMap, id: int, vocabulary: Vocabulary) -> LabelMap:
    """The label map without a structure and what is named inside of it: what surrounds it takes its place."""
    mask = mask_of(labels, id, vocabulary)
    if not mask.any():
        return labels
    change = _Change.around(labels, mask, id, vocabulary, frozenset())
    return change.filled(change.mask)


@dataclass(frozen=True, eq=False)
class _Change:
    """A structure in the part of a label map that it can reach."""

    labels: LabelMap
    box: Box
    ids: np.ndarray  # of the box
    mask: np.ndarray  # of the box
    id: int
    vocabulary: Vocabulary
    keep: frozenset[int]

    @classmethod
    def around(
        cls, labels: LabelMap, mask: np.ndarray, id: int, vocabulary: Vocabulary, keep: frozenset[int]
    ) -> "_Change":
        reach = size_rules().change.reach_mm
        found = ndimage.find_objects(mask.astype(np.uint8))[0]
        margins = [int(np.ceil(reach / s)) for s in labels.grid.spacing]
        x, y, z = (slice(max(0, part.start - m), part.stop + m) for part, m in zip(found, margins, strict=True))
        box = (x, y, z)
        return cls(labels, box, labels.array[box], mask[box], id, vocabulary, keep)

    @property
    def rules(self) -> ChangeRules:
        return size_rules().change

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.labels.grid.spacing

    def with_ids(self, ids: np.ndarray) -> LabelMap:
        array = self.labels.array.copy()
        array[self.box] = ids
        return LabelMap(array, self.labels.grid)

    def filled(self, gone: np.ndarray) -> LabelMap:
        """The label map with the voxels `gone` as the nearest of what may move in; background, where nothing may."""
        fills = [each for name in self.rules.fills for each in self.vocabulary.members(name)]
        fills = [each for each in fills if each not in members_of(self.id, self.vocabulary)]
        outside = BACKGROUND if self.vocabulary.id("body") not in self.labels.array else fills[0]
        near = np.isin(self.ids, [*fills, outside]) & ~gone
        if not near.any():
            return self.with_ids(np.where(gone, self.ids.dtype.type(outside), self.ids))
        indices = ndimage.distance_transform_edt(
            ~near, sampling=self.spacing, return_distances=False, return_indices=True
        )
        return self.with_ids(np.where(gone, self.ids[tuple(indices)], self.ids))

    # Growing ----------------------------------------------------------------------------------------------------------

    def grown(self, wanted: int) -> LabelMap:
        """The label map with the structure of `wanted` voxels."""
        cost = self._cost()
        taken = self._cheapest(cost, wanted - int(np.count_nonzero(self.mask)))
        if taken is None:
            most = (np.count_nonzero(self.mask) + np.count_nonzero(np.isfinite(cost))) * np.prod(self.spacing) / 1000
            raise InvalidAnatomyError(
                f"{self.vocabulary.name(self.id)} of {wanted * np.prod(self.spacing) / 1000:.3g} ml does not fit: what "
                f"surrounds it gives way up to about {most:.3g} ml"
            )
        own = self.mask & np.isin(self.ids, members_of(self.id, self.vocabulary))
        indices = ndimage.distance_transform_edt(
            ~own, sampling=self.spacing, return_distances=False, return_indices=True
        )
        return self.with_ids(np.where(taken, self.ids[tuple(indices)], self.ids))

    def _cost(self) -> np.ndarray:
        """How dear a voxel is: its distance (mm) times the weight of what it is; infinite where nothing may go."""
        distance = self._smoothed(ndimage.distance_transform_edt(~self.mask, sampling=self.spacing))
        weights = np.full(256, np.inf)
        shares = np.zeros(256)
        for name, giving in self.rules.gives.items():
            for each in self.vocabulary.members(name):
                if np.isinf(weights[each]) and each not in self.keep:
                    weights[each], shares[each] = giving.weight, giving.share
        if self.vocabulary.id("body") not in self.labels.array:  # what has no name may be anything soft
            weights[BACKGROUND], shares[BACKGROUND] = 1.0, 1.0
        weights[list(lesion_ids(self.vocabulary))] = np.inf
        weight = weights[self.ids]
        cost = np.where(np.isfinite(weight), distance, np.inf) * weight
        cost[self.mask | self._walls() | (distance > self.rules.reach_mm)] = np.inf
        for each in np.unique(self.ids[np.isfinite(cost)]):
            if shares[each] < 1:
                self._bound(cost, int(each), shares[each])
        return cost

    def _bound(self, cost: np.ndarray, id: int, share: float) -> None:
        """Leave of the voxels of a neighbour only the cheapest ones, of this share of its volume."""
        voxels = np.flatnonzero((self.ids == id) & np.isfinite(cost))
        most = int(share * np.count_nonzero(self.labels.array == id))
        if len(voxels) > most:
            dear = voxels[np.argsort(cost.reshape(-1)[voxels], kind="stable")[most:]]
            cost.reshape(-1)[dear] = np.inf

    def _walls(self) -> np.ndarray:
        """What stays: the skin, and what lies between the ribs."""
        walls = np.zeros(self.ids.shape, bool)
        if self.vocabulary.id("body") in self.labels.array:
            walls |= ~erode(self.ids != BACKGROUND, self.rules.skin_mm, self.spacing)
        ribs = np.isin(self.ids, [*self.vocabulary.group("ribs"), *self.vocabulary.group("cartilages")])
        if ribs.any():
            cage = fill_slices(close_mask(ribs, self.rules.wall_mm, self.spacing, IN_PLANE))
            walls |= cage & ~erode(cage, self.rules.skin_mm, self.spacing, IN_PLANE)
        return walls

    def _cheapest(self, cost: np.ndarray, number: int) -> np.ndarray | None:
        """The cheapest voxels that hang together with the structure, so many of them; None where there are too few."""
        open_ = np.isfinite(cost)
        for _ in range(MOST_ROUNDS):
            if np.count_nonzero(open_) < number:
                return None
            voxels = np.flatnonzero(open_)
            order = np.argsort(cost.reshape(-1)[voxels], kind="stable")[:number]
            taken = np.zeros(self.ids.shape, bool)
            taken.reshape(-1)[voxels[order]] = True
            apart = taken & ~_touching(taken | self.mask, self.mask)
            if not apart.any():
                return taken
            open_ &= ~apart
        return None

    # Shrinking --------------------------------------------------------------------------------------------------------

    def shrunk(self, wanted: int) -> LabelMap:
        """The label map with the structure of `wanted` voxels, in as many pieces as before or fewer."""
        depth = self._smoothed(ndimage.distance_transform_edt(self.mask, sampling=self.spacing))
        voxels = np.flatnonzero(self.mask)
        order = voxels[np.argsort(-depth.reshape(-1)[voxels], kind="stable")]
        tree = _Tree.of(self.mask, depth)
        low, high = 0, wanted
        middle = wanted
        while low < high:  # with the bridges that hold it together, the most that is not too much
            low, high = (middle, high) if np.count_nonzero(tree.joined(order[:middle])) <= wanted else (low, middle - 1)
            middle = (low + high + 1) // 2
        return self.filled(self.mask & ~tree.joined(order[:low]))

    def _smoothed(self, distance: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(distance, [self.rules.smooth_mm / s for s in self.spacing])


@dataclass(frozen=True, eq=False)
class _Tree:
    """The paths through a mask that stay as deep as can be: its maximum spanning tree by depth.

    A piece of what is deeper than some depth holds its deepest voxel, so paths from pieces to the deepest voxel of all
    join them, and leave that depth only where there is no other way.
    """

    shape: tuple[int, ...]
    above: np.ndarray  # flat index by flat index: the next voxel towards the deepest of its part of the mask, or -1

    @classmethod
    def of(cls, mask: np.ndarray, depth: np.ndarray) -> "_Tree":
        voxels = np.flatnonzero(mask)
        number = np.full(mask.shape, -1)
        number.reshape(-1)[voxels] = np.arange(len(voxels))
        pairs = []
        for axis in range(3):
            one, other = (number.take(range(a, mask.shape[axis] - 1 + a), axis) for a in (0, 1))
            both = (one >= 0) & (other >= 0)
            pairs.append(np.stack([one[both], other[both]], axis=1))
        edges = np.concatenate(pairs)
        deep = depth.reshape(-1)[voxels]
        shallow = 1.0 + deep.max() - deep[edges].min(axis=1)  # the spanning tree is one of least weight
        top = len(voxels)  # a place above the deepest voxels of all parts
        edges = np.concatenate([edges, [[root, top] for root in _deepest(mask, depth, number)]])
        weights = np.concatenate([shallow, np.ones(len(edges) - len(shallow))])
        graph = sparse.csr_matrix((weights, (edges[:, 0], edges[:, 1])), shape=(top + 1, top + 1))
        spanning = csgraph.minimum_spanning_tree(graph)
        _, towards = csgraph.breadth_first_order(spanning, top, directed=False)
        above = np.full(mask.size, -1)
        above[voxels] = np.append(voxels, -1)[towards[:top]]
        return cls(mask.shape, above)

    def joined(self, kept: np.ndarray) -> np.ndarray:
        """The mask of the voxels `kept` (flat indices) and of the paths that join its pieces."""
        mask = np.zeros(self.shape, bool)
        flat = mask.reshape(-1)
        flat[kept] = True
        numbered, sizes = parts(mask)
        if len(sizes) <= 2:
            return mask
        pieces, firsts = np.unique(numbered.reshape(-1)[kept], return_index=True)
        seen: set[int] = set()
        for start in kept[firsts[pieces > 0]].tolist():
            at = start
            while at >= 0 and at not in seen:
                seen.add(at)
                at = int(self.above[at])
        flat[list(seen)] = True
        return mask


def _deepest(mask: np.ndarray, depth: np.ndarray, number: np.ndarray) -> list[int]:
    """The numbers of the deepest voxels of the parts of a mask."""
    numbered, sizes = parts(mask)
    places = ndimage.maximum_position(depth, numbered, range(1, len(sizes)))
    return [int(number[place]) for place in places]


def _touching(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The pieces of a mask in which some of the seed lies."""
    numbered, sizes = parts(mask)
    good = np.zeros(len(sizes), bool)
    good[np.unique(numbered[seed])] = True
    good[0] = False
    return good[numbered]
