"""Zoom refinement: small structures drawn again at finer spacing, in place, with all around them held.

A small organ fills few voxels of a coarse volume. Here a window around it is drawn again at the finest spacing that the
bundle was trained for, with the latent held to that of the volume everywhere but in the structure and its border, and
is put back into the volume.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.measure import looks
from maisi.anatomy.references import HuRange, hu_range
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.vocabulary import Vocabulary
from maisi.bundle.bundle import Bundle
from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidBundleError, InvalidGridError, InvalidLabelsError, InvalidRequestError
from maisi.pipelines.blend import at_level, core_of, deviation, soft_edge
from maisi.pipelines.generate import OnStage, sample_generators
from maisi.pipelines.quality.image import phase_of
from maisi.pipelines.redraw import Redraw, fitted_to, sampling
from maisi.pipelines.refine_request import RefineRequest
from maisi.pipelines.validate import bundle_of, bundle_vocabulary, compute_for, lasting_name
from maisi.pipelines.windows import Window, own_spacing, windows_of
from maisi.shapes import Frozen, Spacing3, in_words
from maisi.space.files import log_findings
from maisi.space.grid import Grid
from maisi.space.reading import FileReport
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume, check_same_grid

AROUND_MM = 8.0
"""How far from a structure its surroundings are measured."""


HELD_BYTES = 16
"""What a CT, its file, its result and its labels take in memory, a voxel."""


class Adherence(Frozen):
    """How much a structure looks as its label says: contrast (HU) to what is within 8 mm, and by the vocabulary.

    `correlation` is that of HU with the vocabulary's HU of the labels, over the structure and what is around it.
    """

    contrast_hu: float
    expected_hu: float
    correlation: float


class RefinedStructure(Frozen):
    """A structure before and after."""

    structure: str
    ml: float
    before: Adherence
    after: Adherence


@dataclass(frozen=True, eq=False)
class Refined:
    """The CT with its structures drawn again, its labels, which voxels may have changed, and what that has done."""

    before: Volume
    volume: Volume
    labels: LabelMap
    changed: LabelMap
    structures: tuple[RefinedStructure, ...]


@dataclass(frozen=True, eq=False)
class ValidRefine:
    """A request that can be carried out: volume and labels on the grid of the result, and the windows to draw."""

    request: RefineRequest
    bundle: Bundle
    volume: Volume
    labels: LabelMap
    ids: tuple[int, ...]
    span: RegionSpan
    windows: tuple[tuple[Window, Bundle], ...]
    reports: tuple[FileReport, ...]


def refine(request: RefineRequest, bundle: Bundle | None = None, on_stage: OnStage | None = None) -> Refined:
    """The CT of a request with its structures drawn again; raises `InvalidRequestError` as the command line would."""
    return draw_again(validate_refine(request, bundle), on_stage or (lambda stage, done, total: None))


def draw_again(valid: ValidRefine, on_stage: OnStage) -> Refined:
    """The result of a request that was found good."""
    _, _, generator = sample_generators(valid.request.seed, 0)
    grid, array = valid.volume.grid, valid.volume.array.copy()
    changed, usual = np.zeros(grid.shape, np.uint8), _usual(valid)
    for window, bundle in valid.windows:
        outer = grid.window([part.start for part in window.outer], window.mask.shape)
        volume, labels = Volume(array[window.outer], outer), LabelMap(valid.labels.array[window.outer], outer)
        redraw = Redraw(sampling(valid.request), bundle, valid.span, valid.request.strength)
        finer = finer_labels(labels, window.grid)
        drawn = redraw.window(window, volume, finer, window.mask, generator, on_stage)
        ct, weight = window.inner(volume.array), soft_edge(window.inner(window.mask))
        values = _as_usual(at_level(ct, drawn, weight, grid.spacing), ct, window.inner(labels.array), usual)
        values = np.clip(values, array.min(), array.max())
        array[window.box] = np.where(weight > 0, np.rint(ct + weight * (values - ct)), ct)
        changed[window.box] |= (weight > 0).astype(np.uint8)
    volume = replace(valid.volume, array=array)
    vocabulary = bundle_vocabulary(valid.bundle)
    told = tuple(_told(valid, volume, id, vocabulary) for id in valid.ids)
    return Refined(valid.volume, volume, valid.labels, LabelMap(changed, grid), told)


def _usual(valid: ValidRefine) -> dict[int, HuRange | None]:
    """What the median of each structure usually is in real CTs of the phase that this one shows."""
    vocabulary = bundle_vocabulary(valid.bundle)
    aorta = looks(valid.volume, valid.labels, (vocabulary.id("aorta"),))
    phase = phase_of("ct", aorta, vocabulary)
    return {id: hu_range(id, vocabulary, phase) for id in valid.ids}


def _as_usual(values: np.ndarray, ct: np.ndarray, ids: np.ndarray, usual: Mapping[int, HuRange | None]) -> np.ndarray:
    """What was drawn, each structure at the median that it had, or the nearest that most real CTs have.

    A texture that is more uneven than within real CTs is damped: to draw again is to sharpen, not to roughen.
    """
    for id, wanted in usual.items():
        inside = ids == id
        if not inside.any():
            continue
        weight = soft_edge(inside)
        core = core_of(weight, inside)
        drawn, level = float(np.median(values[core])), float(np.median(ct[core]))
        share = 1.0
        if wanted is not None:
            low, high = ((wanted.mean + bound) / 2 for bound in wanted.usual)  # about a standard deviation
            level = float(np.clip(level, low, high))
            share = min(1.0, (wanted.spread or np.inf) / max(deviation(values[core]), 1e-6))
        values = values + weight * (level + share * (values - drawn) - values)
    return values


def finer_labels(labels: LabelMap, grid: Grid) -> LabelMap:
    """The labels on another grid with smooth borders: each voxel has the structure that fills most of it.

    A structure that fills most of none has the voxels that it fills most, as many as are as large as it is.
    """
    best = np.zeros(grid.shape, np.float32)
    ids = np.zeros(grid.shape, np.uint8)
    present = np.unique(labels.array)
    for id in present:
        share = _share(labels, id, grid)
        ids[share > best] = id
        best = np.maximum(best, share)
    for id in np.setdiff1d(present, ids):
        share = _share(labels, id, grid).reshape(-1)
        within = np.flatnonzero(share)
        most = within[np.argsort(-share[within], kind="stable")[: max(1, round(float(share.sum())))]]
        ids.reshape(-1)[most] = id
    return LabelMap(ids, grid)


def _share(labels: LabelMap, id: int, grid: Grid) -> np.ndarray:
    """How much of each voxel of a grid a structure fills."""
    return resample(Volume((labels.array == id).astype(np.float32), labels.grid, "mr"), grid).array


def adherence(volume: Volume, labels: LabelMap, id: int, vocabulary: Vocabulary) -> Adherence:
    """How much a structure looks as its label says."""
    (box,) = ndimage.find_objects((labels.array == id).astype(np.uint8))
    margin = [int(np.ceil(AROUND_MM / s)) + 1 for s in labels.grid.spacing]
    box = tuple(slice(max(0, part.start - m), part.stop + m) for part, m in zip(box, margin, strict=True))
    hu, ids = volume.array[box], labels.array[box]
    inside = ids == id
    near = morphology.dilate(inside, AROUND_MM, labels.grid.spacing) & (ids > 0)
    table = np.zeros(256, np.float32)
    for each in np.unique(ids[near]):
        table[each] = (vocabulary.structure(int(each)).hu or (0.0, 0.0))[0]
    expected, ring = table[ids], near & ~inside
    if not ring.any():
        return Adherence(contrast_hu=0.0, expected_hu=0.0, correlation=0.0)
    flat = min(float(hu[near].std()), float(expected[near].std())) < 1e-6
    correlation = 0.0 if flat else float(np.corrcoef(hu[near], expected[near])[0, 1])
    return Adherence(
        contrast_hu=round(float(np.median(hu[inside]) - np.median(hu[ring])), 1),
        expected_hu=round(float(np.median(expected[inside]) - np.median(expected[ring])), 1),
        correlation=round(correlation, 3),
    )


def _told(valid: ValidRefine, volume: Volume, id: int, vocabulary: Vocabulary) -> RefinedStructure:
    voxels = int((valid.labels.array == id).sum())
    return RefinedStructure(
        structure=vocabulary.name(id),
        ml=round(voxels * float(np.prod(volume.grid.spacing)) / 1000, 2),
        before=adherence(valid.volume, valid.labels, id, vocabulary),
        after=adherence(volume, valid.labels, id, vocabulary),
    )


# Before ---------------------------------------------------------------------------------------------------------------


def validate_refine(request: RefineRequest, bundle: Bundle | None = None) -> ValidRefine:
    """The request with all that it needs read and found; raises `InvalidRequestError` for what is impossible."""
    if request.labels is None or not request.structures:
        raise InvalidRequestError("what is to be drawn again? accepted: --labels FILE and --structures NAME,NAME")
    request = request.model_copy(update={"compute": compute_for(request.compute, bundle)})
    bundle = bundle_of(sampling(request), bundle)
    missing = [kind for kind in ("unet", "controlnet") if kind not in bundle.kinds]
    if missing:
        raise InvalidBundleError(f"bundle {bundle.name!r} cannot refine: it has no {' and no '.join(missing)}")
    vocabulary = bundle_vocabulary(bundle)
    volume, labels, reports = _read(request, vocabulary)
    ids = _ids(request, labels, vocabulary)
    span = region_span(labels, vocabulary)
    zoom = _zoom(request, volume.grid, bundle)
    if request.spacing is not None:
        grid = with_spacing(volume.grid, request.spacing)
        volume, labels = resample(volume, grid), finer_labels(labels, grid)
        lost = [vocabulary.name(id) for id in ids if not (labels.array == id).any()]
        if lost:
            raise InvalidRequestError(f"{lost[0]} has no voxel of {request.spacing} mm; accepted: a finer --spacing")
    border = 1.01 * max(volume.grid.spacing)
    mask = morphology.dilate(np.isin(labels.array, ids), border, volume.grid.spacing) & (labels.array > 0)
    windows = windows_of(mask, volume.grid, bundle.limits, bundle.size_multiple, zoom)
    held = HELD_BYTES * volume.grid.num_voxels
    fitted = tuple((each, fitted_to(each.grid, bundle, sampling(request), held)) for each in windows)
    scale = bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale
    update = {
        "bundle": lasting_name(request.bundle, bundle),
        "source": request.source.resolve(),
        "labels": request.labels and request.labels.resolve(),
        "controlnet_scale": scale,
        "zoom": zoom,
    }
    return ValidRefine(request.model_copy(update=update), bundle, volume, labels, ids, span, fitted, reports)


def _read(request: RefineRequest, vocabulary: Vocabulary) -> tuple[Volume, LabelMap, tuple[FileReport, ...]]:
    assert request.labels is not None
    volume, of_volume = open_volume(request.source, request.reading)
    labels, of_labels = open_labels(request.labels, request.reading, vocabulary)
    for report in (of_volume, of_labels):
        log_findings(report.path, report.findings)
    try:
        check_same_grid(labels, volume)
    except InvalidLabelsError as error:
        raise InvalidLabelsError(f"{request.labels}: {error}") from error
    return volume, LabelMap(labels.array.astype(np.uint8), volume.grid), (of_volume, of_labels)


def _ids(request: RefineRequest, labels: LabelMap, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of the structures that are asked for; raises `InvalidLabelsError` for one that the labels lack."""
    present, found = set(vocabulary.check_ids(labels.array)), []
    for name in request.structures:
        members = vocabulary.group(name) if name in vocabulary.groups else (vocabulary.find(name),)
        own = [id for id in members if id in present]
        if not own:
            raise InvalidLabelsError(f"{request.labels} holds no {name}, which was to be drawn again")
        found += own
    return tuple(dict.fromkeys(found))


def _zoom(request: RefineRequest, grid: Grid, bundle: Bundle) -> Spacing3:
    """The spacing to draw at; raises `InvalidGridError` where it is no finer than the CT's, or not the bundle's."""
    zoom = request.zoom or bundle.limits.min_spacing_mm
    told = in_words(zoom)
    now = own_spacing(grid, bundle.limits)
    if not any(new < old - 1e-6 for new, old in zip(zoom, now, strict=True)):
        raise InvalidGridError(
            f"{told} mm is no finer than the CT's {in_words(now)} mm; accepted: a coarser CT, or a "
            "bundle that was trained for finer ones"
        )
    least = bundle.limits.min_spacing_mm
    if any(new < low - 1e-6 for new, low in zip(zoom, least, strict=True)) and not request.force:
        raise InvalidGridError(
            f"a zoom of {told} mm is below the {in_words(least)} mm that bundle {bundle.name!r} "
            "was trained for; --force goes on"
        )
    return zoom
