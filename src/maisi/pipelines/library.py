"""A library of label maps as a source: drawn with replacement, bent into other people, far from every original."""

import logging
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from maisi.anatomy.body import enclosed
from maisi.anatomy.deform import Warp, warped
from maisi.anatomy.fulfil import needed
from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.resize import members_of
from maisi.anatomy.variation import variation_rules
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.library import PEOPLE, Library, LibraryEntry, Origin, Wanted, matching
from maisi.errors import InvalidAnatomyError, InvalidRequestError
from maisi.pipelines.labels import Anatomy
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

logger = logging.getLogger(__name__)

TALL_ENOUGH = 0.98  # of the height of a field of view, a packaged map; to the sides there may be air


@dataclass(frozen=True)
class LibraryLabels:
    """Maps of a library that show a region, each draw another one or the same bent otherwise.

    Maps that are kept for validation or testing are never drawn. What has to be there (`kept`, ids) is kept in view.
    """

    library: Library
    entries: tuple[LibraryEntry, ...]
    region: str
    grid: Grid
    kept: frozenset[int] = frozenset()
    min_distance: float = field(default_factory=lambda: variation_rules().min_distance)
    enclose: bool = False
    name: str = ""

    @property
    def span(self) -> RegionSpan:
        return RegionSpan.named(self.region)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        """A map of the library, bent; raises `InvalidAnatomyError` where no strength takes it far enough away.

        Its lesions are those of the map that it comes from.
        """
        shares = np.array([Wanted(fov_mm=self.grid.fov_mm).cover(entry) ** 2 for entry in self.entries])
        entry = self.entries[int(rng.choice(len(self.entries), p=shares / shares.sum()))]
        original = self.library.labels(entry)
        centre = view_centre(original, self.region, self.grid, self.kept, rng)
        closest = 0.0
        for strength in variation_rules().strengths:
            labels = warped(original, self.grid, Warp.drawn(self.grid, centre, rng, strength))
            if not labels.array.any():
                continue
            distance, nearest = self.library.nearest(labels, entry)
            if distance >= self.min_distance:
                labels = self._with_body(labels, entry)
                return Anatomy(self.grid, self.span, labels, origin=Origin(entry, nearest, round(distance, 4)))
            closest = max(closest, distance)
        raise InvalidAnatomyError(
            f"{entry.id} of the library was bent to {closest:.2f} from the nearest map at most, which is under "
            f"{self.min_distance:g}; accepted: a smaller --min-distance, or another seed"
        )

    def _with_body(self, labels: LabelMap, entry: LibraryEntry) -> LabelMap:
        body = load_vocabulary().id("body")
        if self.enclose and body not in labels.array:
            return enclosed(labels)
        if body not in labels.array:
            logger.warning("%s of the library has no body (%d); --enclose draws one", entry.id, body)
        return labels


def library_source(
    library: Library,
    region: str,
    grid: Grid,
    request: AnatomyRequest | None = None,
    min_distance: float | None = None,
    enclose: bool = False,
) -> LibraryLabels:
    """The source of maps of a library that show a region and can be changed into what is asked for.

    Raises `InvalidRequestError` where no map of the library can, with why.
    """
    top = RegionSpan.named(region).top.name.lower()
    structures = {} if request is None else needed(request)
    whole = [] if request is None else [each for id in request.organs for each in members_of(id, request.vocabulary)]
    wanted = Wanted(top, structures, frozenset(whole), grid.fov_mm, "training")
    entries = matching(library.entries, wanted)
    kept = frozenset() if request is None else request.wanted - request.lesions
    least = variation_rules().min_distance if min_distance is None else min_distance
    return LibraryLabels(library, entries, region, grid, kept, least, enclose)


def people_source(region: str, grid: Grid, request: AnatomyRequest | None = None) -> LibraryLabels | None:
    """Those of the packaged maps that show what is asked for and reach from the top of the grid to its bottom.

    None where there are none: bones of the legs, or a field of view larger than the maps.
    """
    try:
        source = library_source(_people(), region, grid, request)
    except InvalidRequestError:
        return None
    tall = tuple(entry for entry in source.entries if entry.fov_mm[2] >= TALL_ENOUGH * grid.fov_mm[2])
    return replace(source, entries=tall) if tall else None


@lru_cache(maxsize=1)
def _people() -> Library:
    return Library.read(PEOPLE)


def view_centre(
    labels: LabelMap, region: str, grid: Grid, kept: frozenset[int], rng: np.random.Generator
) -> np.ndarray:
    """The place (mm) in a map that a field of view is to have in its middle, drawn near that of the region.

    The view stays inside of the map where it can, and keeps what has to be kept in sight.
    """
    vocabulary, view = load_vocabulary(), np.array(grid.fov_mm)
    markers = [vocabulary.id(name) for name in vocabulary.regions[RegionSpan.named(region).top.name.lower()].markers]
    low, high = _extent(labels, labels.array > 0)
    marked = np.isin(labels.array, markers)
    first, last = _extent(labels, marked) if marked.any() else (low, high)
    centre = np.append(((low + high) / 2)[:2], ((first + last) / 2)[2])
    centre += variation_rules().shift_sd * rng.normal(size=3)
    centre = _between(centre, low + view / 2, high - view / 2)
    seen = np.isin(labels.array, [each for id in kept for each in members_of(id, vocabulary)])
    if seen.any():
        first, last = _extent(labels, seen)
        margin = np.array(grid.spacing)
        centre = _between(centre, last + margin - view / 2, first - margin + view / 2)
    return centre


def _extent(labels: LabelMap, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest corner (mm) of a mask."""
    profiles = [mask.any(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    first, last = (labels.grid.world(np.array([end[k] for end in ends])) for k in (0, 1))
    half = np.array(labels.grid.spacing) / 2
    return first - half, last + half


def _between(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`x` moved between the ends; into the middle of them where the low one is above the high one."""
    return np.where(low <= high, np.clip(x, np.minimum(low, high), np.maximum(low, high)), (low + high) / 2)
