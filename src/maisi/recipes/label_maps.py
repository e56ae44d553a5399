"""The label maps that a label generator learns from: variations of cases, and phantoms, on one grid."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.body import enclosed
from maisi.anatomy.lesions import lesion_ids, without_structures
from maisi.anatomy.places import first_lumbar, footprints
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.tumours import plant
from maisi.anatomy.tumours.table import tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.cases import own_labels, read_case
from maisi.data.lazy import LazySequence
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.phantom.draw import draw_phantom, region_centre
from maisi.pipelines.label_codec import label_channels
from maisi.recipes.recipe import LabelMapsRecipe
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.resample import pad, resample
from maisi.space.volume import LabelMap

logger = logging.getLogger(__name__)

LATTICE_MM = 60.0  # between the nodes of a random deformation
JITTER_MM = (3.0, 3.0, 10.0)  # of the centre, as between phantoms
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class StoredMap:
    """A label map on disk, which region it is centred on, and what it is called."""

    path: Path
    region: BodyRegion
    name: str

    @property
    def span(self) -> RegionSpan:
        return RegionSpan(self.region, self.region)

    def read(self) -> LabelMap:
        """The map."""
        return read_labels(self.path)


def make_maps(
    recipe: LabelMapsRecipe, seed: int, cases: Sequence[Case], folder: Path, num_phantoms: int
) -> list[StoredMap]:
    """Variations of every case that shows enough, and phantoms, written once; files that are there stay.

    A case gives `variations` of each region that its field of view covers.
    """
    made: list[StoredMap] = []
    for case in cases:
        made += _of_case(recipe, seed, case, folder)
    grid = Grid.centered(recipe.size, recipe.spacing_mm)
    for index in range(num_phantoms):
        region = list(BodyRegion)[index % len(BodyRegion)]
        path = folder / f"phantom{index:05d}_{region.name.lower()}.nii.gz"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, index])
            write_labels(with_tumours(recipe, draw_phantom(region.name.lower(), grid, rng), rng), path)
        made.append(StoredMap(path, region, path.name.removesuffix(".nii.gz")))
    return made


def _of_case(recipe: LabelMapsRecipe, seed: int, case: Case, folder: Path) -> list[StoredMap]:
    """The stored variations of a case, none where it shows too little."""
    done = folder / f"{case.stem}.done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, labels in _variations(recipe, seed, case):
            write_labels(labels, folder / f"{name}.nii.gz")
        done.touch()
    found = {path: path.name.removesuffix(".nii.gz").rsplit("__", 2) for path in sorted(folder.glob("*__*__*.nii.gz"))}
    return [
        StoredMap(path, BodyRegion.named(parts[1]), "__".join(parts))
        for path, parts in found.items()
        if parts[0] == case.stem
    ]


def _variations(recipe: LabelMapsRecipe, seed: int, case: Case) -> Iterator[tuple[str, LabelMap]]:
    labels = whole_labels(recipe, case)
    if labels is None:
        return
    origin = first_lumbar(footprints(labels), load_vocabulary())
    for region in BodyRegion:
        for i in range(recipe.variations):
            rng = np.random.default_rng([seed, *case.id.encode(), region.value, i])
            varied = None if origin is None else _varied(recipe, labels, origin, region, rng)
            if varied is not None:
                yield f"{case.stem}__{region.name.lower()}__{i:03d}", with_tumours(recipe, varied, rng)


def whole_labels(recipe: LabelMapsRecipe, case: Case) -> LabelMap | None:
    """The labels of a case with the body around them; None, and a line in the log, where they show too little."""
    own, vocabulary = own_labels(case), load_vocabulary()
    num = 0 if own is None else len(vocabulary.check_ids(own.array))
    if own is None or num < recipe.least_structures:
        logger.info("case %s shows %d structures, less than %d: left out", case.id, num, recipe.least_structures)
        return None
    labels = read_case(case)[1] if case.image is not None else own
    if vocabulary.id("body") not in labels.array and not recipe.enclose:
        logger.info("case %s has no body and no CT that shows it: left out", case.id)
        return None
    return labels


def _varied(
    recipe: LabelMapsRecipe,
    labels: LabelMap,
    origin: tuple[float, float, float],
    region: BodyRegion,
    rng: np.random.Generator,
) -> LabelMap | None:
    """The labels around the centre of a region, zoomed and bent at random; None where they do not cover it."""
    zoom = np.clip(rng.normal(1, recipe.zoom, 3), 1 - 2 * recipe.zoom, 1 + 2 * recipe.zoom)
    spacing = np.array(recipe.spacing_mm) / zoom
    centre = np.array(origin) + region_centre(region.name.lower()) + rng.normal(0, JITTER_MM)
    fov = spacing * recipe.size
    low = labels.grid.origin[2] - labels.grid.spacing[2] / 2
    high = low + labels.grid.fov_mm[2]
    if min(high, centre[2] + fov[2] / 2) - max(low, centre[2] - fov[2] / 2) < recipe.least_cover * fov[2]:
        return None
    if high - low >= fov[2]:  # rather a little off the centre than cut
        centre[2] = np.clip(centre[2], low + fov[2] / 2, high - fov[2] / 2)
    start = centre - spacing * (np.array(recipe.size) - 1) / 2
    found = resample(labels, Grid.axis_aligned(recipe.size, spacing.tolist(), start.tolist()))
    ids = bent(found.array.astype(np.uint8), recipe.spacing_mm, recipe.bend_mm, rng)
    varied = LabelMap(ids, Grid.centered(recipe.size, recipe.spacing_mm))
    return varied if load_vocabulary().id("body") in ids else with_body(varied)


def with_body(labels: LabelMap) -> LabelMap:
    """The map with a body around and between its structures, the flesh between ribs and hips too."""
    vocabulary, spacing = load_vocabulary(), labels.grid.spacing
    reach_mm = vocabulary.body.enclosed_gap_mm + vocabulary.body.enclosed_rim_mm
    room = [round(reach_mm / spacing[0]), round(reach_mm / spacing[1]), 0]  # a mask goes on beyond the border
    wide = pad(labels, room, room)
    found = wide.array > 0
    closed = morphology.close_mask(found, vocabulary.body.enclosed_gap_mm, spacing)
    filled = np.where(closed & ~found, np.uint8(vocabulary.id("body")), wide.array)
    return resample(enclosed(LabelMap(filled, wide.grid)), labels.grid)


def with_tumours(recipe: LabelMapsRecipe, labels: LabelMap, rng: np.random.Generator) -> LabelMap:
    """The map with tumours planted as often as the recipe says, where there is a host with room for one."""
    for name, chance in recipe.tumours.items():
        if rng.random() < chance:
            try:
                labels = plant(labels, name, rng)
            except InvalidRequestError as error:
                logger.debug("no %s: %s", name, error)
    return labels


def bent(ids: np.ndarray, spacing: Sequence[float], amplitude_mm: float, rng: np.random.Generator) -> np.ndarray:
    """The ids moved by a smooth random field whose nodes move by `amplitude_mm` (standard deviation) on each axis."""
    if amplitude_mm == 0:
        return ids
    nodes = [max(4, round(n * s / LATTICE_MM) + 1) for n, s in zip(ids.shape, spacing, strict=True)]
    places = list(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in ids.shape], indexing="ij"))
    for axis in range(3):
        lattice = rng.normal(0, amplitude_mm / spacing[axis], nodes)
        zoom = [n / m for n, m in zip(ids.shape, nodes, strict=True)]
        places[axis] += ndimage.zoom(lattice, zoom, order=3, mode="nearest", grid_mode=True).astype(np.float32)
    return ndimage.map_coordinates(ids, places, order=0, mode="nearest")


def channels_for(recipe: LabelMapsRecipe, maps: Sequence[StoredMap]) -> tuple[int, ...]:
    """The id of each logit: those of the released generator, or 0 and what the maps show of the recipe's structures.

    Of lesions those that were planted: what a few cases have grown is too little to learn from.
    """
    if recipe.channels == "released":
        return label_channels()
    vocabulary = load_vocabulary()
    found = {int(id) for each in maps for id in np.unique(each.read().array)}
    planted = {vocabulary.id(tumour_named(name, vocabulary).name) for name in recipe.tumours}
    healthy = found - set(lesion_ids(vocabulary))
    named = {id for name in recipe.structures for id in vocabulary.members(name)}
    kept = healthy & named if named else healthy
    bones = {vocabulary.id("skeleton")} if (healthy - kept) & set(vocabulary.group("bones")) else set()
    return tuple(sorted({0, vocabulary.id("body")} | kept | bones | (found & planted)))


def arrays_of(maps: Sequence[StoredMap], channels: Sequence[int]) -> LazySequence[np.ndarray]:
    """The ids of the maps, of the channels alone, read when they are asked for."""
    loads = [partial(_ids, each, tuple(channels)) for each in maps]
    return LazySequence(loads, lambda ids: ids.nbytes, KEPT_BYTES)


def _ids(stored: StoredMap, channels: tuple[int, ...]) -> np.ndarray:
    return in_channels(stored.read(), channels, load_vocabulary()).array


def in_channels(labels: LabelMap, channels: Sequence[int], vocabulary: Vocabulary) -> LabelMap:
    """The map without what has no channel: lesions as what they grow in, bones as skeleton where that has one, all else
    as plain body.
    """
    foreign = set(vocabulary.check_ids(labels.array)) - set(channels)
    healthy = without_structures(labels.array.astype(np.uint8), foreign & set(lesion_ids(vocabulary)), vocabulary)
    instead = np.full(256, vocabulary.id("body"), np.uint8)
    if (skeleton := vocabulary.id("skeleton")) in channels:
        instead[list(vocabulary.group("bones"))] = skeleton
    instead[list(channels)] = list(channels)
    return replace(labels, array=instead[healthy])


def check_maps(maps: Sequence[StoredMap]) -> None:
    """Raise `InvalidRequestError` where there is nothing to learn from."""
    if not maps:
        raise InvalidRequestError(
            "no label map to learn from; accepted: cases whose labels name a body and enough structures, or "
            "labels.maps.num_phantoms above 0"
        )
