"""Where the label map of a generated volume comes from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from maisi.anatomy.body import enclosed
from maisi.anatomy.fulfil import check_labels
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.data.door import open_labels
from maisi.data.library import Origin
from maisi.errors import InvalidGridError, InvalidLabelsError, InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.shapes import Size3, Spacing3, in_words
from maisi.space.endings import IMAGES, image_files, name_of
from maisi.space.files import log_findings
from maisi.space.grid import Grid
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anatomy:
    """What one sample is to show: labels (None: nothing is to be followed), on a grid, of a span of regions.

    `asked` and `obtained` are volumes (ml) by id of what was asked for; `origin` is the map of a library behind it.
    """

    grid: Grid
    span: RegionSpan
    labels: LabelMap | None
    asked: Mapping[int, float] = field(default_factory=dict)
    obtained: Mapping[int, float] = field(default_factory=dict)
    origin: Origin | None = None


@runtime_checkable
class LabelSource(Protocol):
    """Draws what samples are to show. A source may own networks; its randomness is what `draw` is given."""

    @property
    def name(self) -> str:
        """What its samples are called after; "" for a number alone."""

    @property
    def grid(self) -> Grid:
        """The grid of every sample."""

    @property
    def span(self) -> RegionSpan:
        """The regions that every sample shows."""

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        """The anatomy of one sample."""


@dataclass(frozen=True)
class LabelsOf:
    """What another source draws, changed: its samples are called and placed alike."""

    source: LabelSource

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def grid(self) -> Grid:
        return self.source.grid

    @property
    def span(self) -> RegionSpan:
        return self.source.span


@dataclass(frozen=True)
class PhantomLabels:
    """Label maps of a procedural patient; every draw is another one."""

    region: str
    grid: Grid
    name: str = ""

    @property
    def span(self) -> RegionSpan:
        return RegionSpan.named(self.region)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        return Anatomy(self.grid, self.span, draw_phantom(self.region, self.grid, rng))


@dataclass(frozen=True)
class NoLabels:
    """Nothing to follow: the U-Net alone decides what a region shows."""

    region: str
    grid: Grid
    name: str = ""

    @property
    def span(self) -> RegionSpan:
        return RegionSpan.named(self.region)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        return Anatomy(self.grid, self.span, None)


@dataclass(frozen=True)
class GivenLabels:
    """The same label map for every sample."""

    labels: LabelMap
    span: RegionSpan
    name: str = ""
    report: FileReport | None = field(default=None, compare=False)

    @property
    def grid(self) -> Grid:
        return self.labels.grid

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        return Anatomy(self.grid, self.span, self.labels)


@dataclass(frozen=True)
class GridRules:
    """Which grids a request and a bundle allow: asked size (voxels) and spacing (mm), limits, multiple of sizes."""

    limits: Limits
    multiple: int
    size: Size3 | None = None
    spacing: Spacing3 | None = None
    force: bool = False


@dataclass(frozen=True)
class LabelRules:
    """How given label maps are read and placed."""

    grid: GridRules
    region: str | None = None
    enclose: bool = False
    reading: ReadOptions = ReadOptions()
    vocabulary: Vocabulary | None = None  # of a bundle with classes of its own
    anatomy: AnatomyRequest | None = None  # what the maps are to be changed into


@dataclass(frozen=True)
class LabelFile:
    """A label map that was read and found good, and is read again when it is drawn: a folder may hold many."""

    path: Path
    rules: LabelRules
    grid: Grid
    span: RegionSpan
    name: str
    report: FileReport | None = field(default=None, compare=False)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        return Anatomy(self.grid, self.span, file_source(self.path, self.rules).labels)


DEFAULT_GRIDS: dict[str, tuple[Size3, Spacing3]] = {
    "head": ((64, 80, 80), (3.5, 3.5, 3.5)),
    "chest": ((96, 80, 56), (4.0, 4.0, 4.0)),
    "abdomen": ((96, 80, 80), (4.0, 4.0, 4.0)),
    "lower": ((112, 64, 80), (4.0, 4.0, 4.0)),
}
"""Size (voxels) and spacing (mm) that show a region of an adult."""


def region_grid(region: str, rules: GridRules) -> Grid:
    """A centred grid of a region; without a size, one that covers the region at the spacing."""
    span = RegionSpan.named(region)
    usual_size, usual_spacing = DEFAULT_GRIDS[span.top.name.lower()]
    spacing, size = rules.spacing or usual_spacing, rules.size
    if size is None:
        extents = [n * s for n, s in zip(usual_size, usual_spacing, strict=True)]
        covered, multiple = _cover(extents, spacing, rules.multiple), rules.multiple
        x, y, z = (min(n, most // multiple * multiple) for n, most in zip(covered, rules.limits.max_size, strict=True))
        size = x, y, z
    check_grid(size, spacing, rules)
    return Grid.centered(size, spacing)


def file_source(path: Path, rules: LabelRules) -> GivenLabels:
    """The labels of a file on a grid that the bundle can generate.

    Without size and spacing the file's own field of view is covered, at its spacing moved into the bundle's range and
    coarse enough for the bundle's largest size; what is larger still is refused, not cut. The span is what the labels
    show, unless a region is named. With `enclose`, a map without body gets one around its structures. Raises
    `InvalidGridError` for what the bundle does not take, `InvalidLabelsError` for ids that the vocabulary lacks,
    `InvalidAnatomyError` for a map that cannot be changed into what was asked, `InvalidRequestError` where no label
    lies in the field of view, all with the name of the file.
    """
    try:
        return _placed(path, rules)
    except InvalidRequestError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _placed(path: Path, rules: LabelRules) -> GivenLabels:
    """The labels of a file, checked and on their grid."""
    vocabulary = rules.vocabulary or load_vocabulary()
    labels, report = open_labels(path, rules.reading, vocabulary)
    log_findings(path, report.findings)
    present, body = vocabulary.check_ids(labels.array), vocabulary.id("body")
    span = RegionSpan.named(rules.region) if rules.region is not None else region_span(labels, vocabulary)
    spacing = rules.grid.spacing or _fitting_spacing(labels.grid, rules.grid)
    size = rules.grid.size or _cover(labels.grid.fov_mm, spacing, rules.grid.multiple)
    check_grid(size, spacing, rules.grid)
    target = with_spacing(labels.grid, spacing)
    shift = [(n - m) // 2 for n, m in zip(target.shape, size, strict=True)]
    resampled = resample(labels, target.window(shift, size))
    if not resampled.array.any():
        raise InvalidRequestError(f"no label of {path} lies in a field of view of {size} voxels at {spacing} mm")
    ids = LabelMap(resampled.array.astype(np.uint8), resampled.grid)
    lost = np.setdiff1d(labels.array[labels.grid.within(ids.grid)], ids.array).tolist()
    if lost:
        names = ", ".join(vocabulary.name(id) for id in lost)
        logger.warning("%s: too small for voxels of %s mm, and not drawn: %s", path, in_words(ids.grid.spacing), names)
    if body not in present and rules.enclose:
        ids = enclosed(ids)
    elif body not in present:
        logger.warning(
            "%s has no body (%d): between and around its structures the CT will be air; --enclose draws one", path, body
        )
    if rules.anatomy is not None:
        check_labels(ids, rules.anatomy)
    return GivenLabels(ids, span, report=report)


def folder_sources(folder: Path, rules: LabelRules) -> list[LabelFile]:
    """A source for each label map of a folder, named after its file, in the order of names; all are read once now.

    Raises `InvalidLabelsError` for a folder without any or with two of one name, and what `file_source` raises.
    """
    paths = image_files(folder)
    if not paths:
        raise InvalidLabelsError(f"no label map in {folder}; accepted: a folder of {', '.join(IMAGES)} files")
    names = [name_of(path) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidLabelsError(f"two label maps of {folder} have one name: {', '.join(twice)}; rename one of them")
    found = [file_source(path, rules) for path in paths]
    return [
        LabelFile(path, rules, source.grid, source.span, name, source.report)
        for path, name, source in zip(paths, names, found, strict=True)
    ]


def check_grid(size: Size3, spacing: Spacing3, rules: GridRules) -> None:
    """Nothing, or an `InvalidGridError` for a size (voxels) that the networks cannot make.

    Without `force` also for a size or a spacing (mm) that the bundle was not trained for.
    """
    multiple, limits = rules.multiple, rules.limits
    if any(n % multiple for n in size):
        low = tuple(max(multiple, n // multiple * multiple) for n in size)
        high = tuple(-(-n // multiple) * multiple for n in size)
        raise InvalidGridError(f"size {size} is not a multiple of {multiple} on every axis; nearest: {low} or {high}")
    wrong = [] if rules.force else limits.violations(size, spacing)
    if wrong:
        raise InvalidGridError(
            f"{'; '.join(wrong)}. The bundle takes {_range(limits)}; --size chooses a part of a larger label map, "
            "--force goes on, without a promise of quality"
        )


def _range(limits: Limits) -> str:
    low, high = (in_words(ends) for ends in (limits.min_spacing_mm, limits.max_spacing_mm))
    taken = f"spacing {low} to {high} mm, size up to {in_words(limits.max_size)}"
    if limits.min_fov_mm is None or limits.max_fov_mm is None:
        return taken
    low, high = (in_words(ends) for ends in (limits.min_fov_mm, limits.max_fov_mm))
    return f"{taken}, field of view {low} to {high} mm"


def _fitting_spacing(grid: Grid, rules: GridRules) -> Spacing3:
    limits = rules.limits
    room = rules.size or limits.max_size
    ends = zip(limits.min_spacing_mm, limits.max_spacing_mm, strict=True)
    x, y, z = (
        float(np.clip(max(s, fov / n), low, high))
        for s, fov, n, (low, high) in zip(grid.spacing, grid.fov_mm, room, ends, strict=True)
    )
    return x, y, z


def _cover(extents_mm: Sequence[float], spacing: Spacing3, multiple: int) -> Size3:
    """The smallest size, a multiple on every axis, that covers the extents."""
    x, y, z = (
        max(1, round(np.ceil(round(extent / s / multiple, 3)))) * multiple
        for extent, s in zip(extents_mm, spacing, strict=True)
    )
    return x, y, z
