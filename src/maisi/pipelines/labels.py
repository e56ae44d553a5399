"""Where the label map of a generated volume comes from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from maisi.anatomy.body import enclosed
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.data.door import open_labels
from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.shapes import Size3, Spacing3
from maisi.space.grid import Grid
from maisi.space.reading import ReadOptions
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap

logger = logging.getLogger(__name__)


@runtime_checkable
class LabelSource(Protocol):
    """Draws the label map of one sample."""

    @property
    def grid(self) -> Grid: ...

    def draw(self, rng: np.random.Generator) -> tuple[LabelMap, RegionSpan]: ...


@dataclass(frozen=True)
class PhantomLabels:
    """Label maps of a procedural patient; every draw is another one."""

    region: str
    grid: Grid

    def draw(self, rng: np.random.Generator) -> tuple[LabelMap, RegionSpan]:
        return draw_phantom(self.region, self.grid, rng), RegionSpan.named(self.region)


@dataclass(frozen=True)
class GivenLabels:
    """The same label map for every sample."""

    labels: LabelMap
    span: RegionSpan

    @property
    def grid(self) -> Grid:
        return self.labels.grid

    def draw(self, rng: np.random.Generator) -> tuple[LabelMap, RegionSpan]:
        return self.labels, self.span


DEFAULT_GRIDS: dict[str, tuple[Size3, Spacing3]] = {
    "head": ((64, 80, 80), (3.5, 3.5, 3.5)),
    "chest": ((96, 80, 80), (4.0, 4.0, 4.0)),
    "abdomen": ((96, 80, 80), (4.0, 4.0, 4.0)),
    "lower": ((112, 64, 80), (4.0, 4.0, 4.0)),
}
"""Size (voxels) and spacing (mm) that show a region of an adult."""


def phantom_source(
    region: str, size: Size3 | None, spacing: Spacing3 | None, limits: Limits, multiple: int, force: bool = False
) -> PhantomLabels:
    """Phantom labels of a region on a centred grid; without a size, one that covers the region at the spacing."""
    span = RegionSpan.named(region)
    usual_size, usual_spacing = DEFAULT_GRIDS[span.top.name.lower()]
    spacing = spacing or usual_spacing
    if size is None:
        extents = [n * s for n, s in zip(usual_size, usual_spacing, strict=True)]
        covered = _cover(extents, spacing, multiple)
        x, y, z = (min(n, most // multiple * multiple) for n, most in zip(covered, limits.max_size, strict=True))
        size = x, y, z
    check_grid(size, spacing, limits, multiple, force)
    return PhantomLabels(region, Grid.centered(size, spacing))


def file_source(
    path: Path,
    size: Size3 | None,
    spacing: Spacing3 | None,
    limits: Limits,
    multiple: int,
    force: bool = False,
    region: str | None = None,
    enclose: bool = False,
    numbering: str | None = None,
) -> GivenLabels:
    """The labels of a file on a grid that the bundle can generate.

    Without size and spacing the file's own field of view is covered, at its spacing moved into the bundle's range and
    coarse enough for the bundle's largest size; what is larger still is refused, not cut. The span is what the labels
    show, unless a region is named. With `enclose`, a map without body gets one around its structures. Raises
    `InvalidGridError` for what the bundle does not take, `InvalidLabelsError` for ids that the vocabulary lacks.
    """
    labels, report = open_labels(path, ReadOptions(numbering=numbering))
    for finding in report.findings:
        level = logging.WARNING if finding.is_warning else logging.INFO
        logger.log(level, "%s: %s; %s", path, finding.found, finding.decided)
    vocabulary = load_vocabulary()
    present, body = vocabulary.check_ids(labels.array), vocabulary.id("body")
    span = RegionSpan.named(region) if region is not None else region_span(labels)
    if spacing is None:
        spacing = _fitting_spacing(labels.grid, size, limits)
    if size is None:
        size = _cover(labels.grid.fov_mm, spacing, multiple)
    check_grid(size, spacing, limits, multiple, force)
    target = with_spacing(labels.grid, spacing)
    shift = [(n - m) // 2 for n, m in zip(target.shape, size, strict=True)]
    target = target.window(shift, size)
    resampled = resample(labels, target)
    if not resampled.array.any():
        raise InvalidRequestError(f"no label of {path} lies in a field of view of {size} voxels at {spacing} mm")
    ids = LabelMap(resampled.array.astype(np.uint8), target)
    if body not in present and enclose:
        return GivenLabels(enclosed(ids), span)
    if body not in present:
        logger.warning(
            "%s has no body (%d): between and around its structures the CT will be air; --enclose draws one", path, body
        )
    return GivenLabels(ids, span)


def check_grid(size: Size3, spacing: Spacing3, limits: Limits, multiple: int, force: bool = False) -> None:
    """Refuse a size that the networks cannot make, and without `force` one the bundle was not trained for."""
    if any(n % multiple for n in size):
        low = tuple(max(multiple, n // multiple * multiple) for n in size)
        high = tuple(-(-n // multiple) * multiple for n in size)
        raise InvalidGridError(f"size {size} is not a multiple of {multiple} on every axis; nearest: {low} or {high}")
    wrong = [] if force else limits.violations(size, spacing)
    if wrong:
        raise InvalidGridError(
            f"{'; '.join(wrong)}. The bundle takes {_range(limits)}; --size chooses a part of a larger label map, "
            "--force goes on, without a promise of quality"
        )


def _range(limits: Limits) -> str:
    low, high = (" x ".join(f"{s:g}" for s in ends) for ends in (limits.min_spacing_mm, limits.max_spacing_mm))
    taken = f"spacing {low} to {high} mm, size up to {' x '.join(map(str, limits.max_size))}"
    if limits.min_fov_mm is None or limits.max_fov_mm is None:
        return taken
    low, high = (" x ".join(f"{s:g}" for s in ends) for ends in (limits.min_fov_mm, limits.max_fov_mm))
    return f"{taken}, field of view {low} to {high} mm"


def _fitting_spacing(grid: Grid, size: Size3 | None, limits: Limits) -> Spacing3:
    room = size or limits.max_size
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
