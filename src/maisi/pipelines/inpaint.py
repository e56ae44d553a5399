"""A tumour put into a CT, or a lesion taken out of it: find the lesion, encode around it, sample, decode, blend.

Latent inpainting without training (RePaint; Lugmayr et al., 2022): a window around the lesion is generated anew while
its latent is held to that of the CT everywhere but in the lesion, and the ControlNet follows labels that hold it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from maisi.anatomy import morphology
from maisi.anatomy.body import tissue_labels
from maisi.anatomy.lesions import healed
from maisi.anatomy.region_estimator import estimate_span
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.tumours.table import tumour_named
from maisi.anatomy.vocabulary import Vocabulary
from maisi.bundle.bundle import Bundle
from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidBundleError, InvalidLabelsError, InvalidRequestError, InvalidVolumeError
from maisi.pipelines.blend import (
    Contrast,
    Seam,
    at_level,
    core_of,
    deviation,
    expected_hu,
    grain,
    measure_seam,
    soft_edge,
    surroundings,
    with_contrast,
)
from maisi.pipelines.generate import OnStage, sample_generators
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.lesion_masks import Lesion, Scene, check_in_body, find_lesion
from maisi.pipelines.redraw import Redraw, fitted_to, sampling
from maisi.pipelines.validate import bundle_of, bundle_vocabulary, check_modality, compute_for, lasting_name
from maisi.pipelines.windows import Window, windows_of
from maisi.shapes import Frozen
from maisi.space.files import log_findings
from maisi.space.in_place import Original, open_original
from maisi.space.reading import FileReport
from maisi.space.volume import LabelMap, Volume, check_same_grid

logger = logging.getLogger(__name__)

RIM_MM = 3.0
"""How far beyond its mask a lesion is healed: masks end where the eye sees a lesion end, and its blur does not."""


HELD_BYTES = 16
"""What a CT, its file, its result and its labels take in memory, a voxel."""


class LesionReport(Frozen):
    """What was made of one lesion: its volume, whose HU it has, the median of its core before and after, its border."""

    tumour: str | None
    ml: float
    voxels_changed: int
    hu_before: float
    hu_after: float
    contrast: Contrast
    seam: Seam
    window_voxels: tuple[int, int, int]
    window_spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Inpainted:
    """A CT with its lesion put in or taken out, the labels that go with it, and the mask of the lesion."""

    volume: Volume
    labels: LabelMap
    mask: LabelMap
    lesions: tuple[LesionReport, ...]


@dataclass(frozen=True, eq=False)
class ValidInpaint:
    """A request that can be carried out: what was read, the lesion, and the windows with their
    complete labels and the bundles fitted to them."""

    request: InpaintRequest
    bundle: Bundle
    scene: Scene
    span: RegionSpan
    lesion: Lesion
    windows: tuple[tuple[Window, LabelMap, Bundle], ...]
    original: Original | None
    reports: tuple[FileReport, ...]


def inpaint(request: InpaintRequest, bundle: Bundle | None = None, on_stage: OnStage | None = None) -> Inpainted:
    """The CT of a request with a lesion put in or taken out; every voxel away from it is bit for bit as it was.

    Raises `InvalidRequestError` for what the command line would refuse too.
    """
    return carry_in(validate_inpaint(request, bundle), on_stage or (lambda stage, done, total: None))


def carry_in(valid: ValidInpaint, on_stage: OnStage, index: int = 0) -> Inpainted:
    """The result of a request that was found good; `index` is that of the case, from which its noise is drawn."""
    scene, lesion = valid.scene, valid.lesion
    _, _, generator = sample_generators(valid.request.seed, index)
    array, reports = scene.volume.array.copy(), []
    for window, labels, bundle in valid.windows:
        volume = Volume(
            array[window.outer], scene.volume.grid.window([s.start for s in window.outer], window.mask.shape)
        )
        shown = labels_with(labels, window.mask, lesion.tumour, bundle_vocabulary(bundle))
        array[window.box], report = _Part(valid, bundle, window, volume, shown).filled(generator, on_stage)
        reports.append(report)
    result = labels_with(scene.labels, lesion.mask, lesion.tumour, bundle_vocabulary(valid.bundle))
    mask = LabelMap(lesion.mask.astype(np.uint8), result.grid)
    return Inpainted(replace(scene.volume, array=array), result, mask, tuple(reports))


def labels_with(labels: LabelMap, mask: np.ndarray, tumour: int | None, vocabulary: Vocabulary) -> LabelMap:
    """The labels with the tumour in them, or with what is healthy in its place."""
    if tumour is None:
        return LabelMap(healed(labels.array, mask, vocabulary), labels.grid)
    return LabelMap(np.where(mask, labels.array.dtype.type(tumour), labels.array), labels.grid)


@dataclass(frozen=True, eq=False)
class _Part:
    """One window of a request: the CT and the labels that it shows, with the lesion in them or healed."""

    valid: ValidInpaint
    bundle: Bundle
    window: Window
    volume: Volume
    labels: LabelMap

    def filled(self, generator: torch.Generator, on_stage: OnStage) -> tuple[np.ndarray, LesionReport]:
        """The HU of the window's box with the lesion drawn into it, and what is to be told of it."""
        change = self._healing() if self.valid.lesion.tumour is None else self.window.mask
        redraw = Redraw(sampling(self.valid.request), self.bundle, self.valid.span)
        drawn = redraw.window(self.window, self.volume, self.labels, change, generator, on_stage)
        ct, mask, ids = (self.window.inner(each) for each in (self.volume.array, change, self.labels.array))
        weight, spacing = soft_edge(mask), self.volume.grid.spacing
        core = core_of(weight, mask)
        contrast, soft_hu = self._contrast(ct, ids, mask), bundle_vocabulary(self.bundle).tissues["soft"]
        noise = grain(ct, drawn, spacing, soft_hu, generator)
        values, told = contrast(at_level(ct, drawn, weight, spacing), noise, core)
        values = np.clip(values, ct.min(), ct.max())
        after = np.where(weight > 0, np.rint(ct + weight * (values - ct)), ct)
        return after, self._report(ct, after, core, weight > 0, told)

    def _healing(self) -> np.ndarray:
        """The lesion with a rim of what the healed labels say is the same tissue."""
        spacing, mask, ids = self.volume.grid.spacing, self.window.mask, self.labels.array
        rim = morphology.dilate(mask, max(RIM_MM, 1.01 * max(spacing)), spacing)
        return mask | (rim & np.isin(ids, np.unique(ids[mask])))

    def _contrast(
        self, ct: np.ndarray, ids: np.ndarray, mask: np.ndarray
    ) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, Contrast]]:
        """What gives a lesion the HU of a tumour in its host, or of what is around it where it is healed."""
        tumour, by, vocabulary = self.valid.lesion.tumour, self.valid.request.contrast, bundle_vocabulary(self.bundle)
        assert by is not None
        hosts = (
            np.unique(ids[mask]) if tumour is None else vocabulary.members(vocabulary.structure(tumour).host or "body")
        )
        ring = surroundings(mask, np.isin(ids, hosts), self.volume.grid.spacing)
        host = float(np.median(ct[ring]))
        if tumour is None:
            expected, tolerance = host, deviation(ct[ring])
        else:
            expected, tolerance = expected_hu(ct, ids, ring, tumour, vocabulary)
        return partial(with_contrast, expected=expected, tolerance=tolerance, host=host, by=by)

    def _report(
        self, ct: np.ndarray, after: np.ndarray, core: np.ndarray, changed: np.ndarray, contrast: Contrast
    ) -> LesionReport:
        tumour, grid = self.valid.lesion.tumour, self.window.grid
        return LesionReport(
            tumour=None if tumour is None else bundle_vocabulary(self.bundle).name(tumour),
            ml=round(float(self.window.mask.sum() * np.prod(self.volume.grid.spacing)) / 1000, 3),
            voxels_changed=int((after != ct).sum()),
            hu_before=round(float(np.median(ct[core])), 1),
            hu_after=round(float(np.median(after[core])), 1),
            contrast=contrast,
            seam=measure_seam(ct, after, changed),
            window_voxels=grid.shape,
            window_spacing_mm=grid.spacing,
        )


# Before ---------------------------------------------------------------------------------------------------------------


def validate_inpaint(request: InpaintRequest, bundle: Bundle | None = None, index: int = 0) -> ValidInpaint:
    """The request with all that it needs read and found; networks are fitted, nothing is computed yet.

    Raises `InvalidRequestError` (or a kind of it) for all that can be known to be impossible, `InvalidPlanError` with
    the least memory that would do.
    """
    if request.source is None:
        raise InvalidRequestError("nothing to inpaint; accepted: a CT, or cases by --manifest")
    request, bundle = with_bundle(request, bundle)
    scene, reports = open_scene(request, bundle_vocabulary(bundle))
    return validate_scene(request, bundle, scene, index, reports)


def validate_scene(
    request: InpaintRequest, bundle: Bundle, scene: Scene, index: int, reports: tuple[FileReport, ...] = ()
) -> ValidInpaint:
    """As `validate_inpaint`, of a CT that was read; `index` is that of the case, from which its places are drawn."""
    assert request.source is not None
    vocabulary = bundle_vocabulary(bundle)
    rng, _, _ = sample_generators(request.seed, index)
    lesion = find_lesion(request, scene, rng, vocabulary)
    windows = windows_of(lesion.mask, scene.volume.grid, bundle.limits, bundle.size_multiple)
    nearby = [scene.near(window.outer, vocabulary) for window in windows]
    for window, labels in zip(windows, nearby, strict=True):
        check_in_body(window.mask, labels)
    held = HELD_BYTES * scene.volume.grid.num_voxels
    fitted = [fitted_to(each.grid, bundle, sampling(request), held) for each in windows]
    parts = tuple(zip(windows, nearby, fitted, strict=True))
    original = open_original(request.source, scene.volume, request.reading)
    return ValidInpaint(request, bundle, scene, _span(scene, vocabulary), lesion, parts, original, reports)


def with_bundle(request: InpaintRequest, bundle: Bundle | None) -> tuple[InpaintRequest, Bundle]:
    """The request with all settings filled in that do not depend on its CT, and the bundle that it asks for."""
    request = request.model_copy(update={"compute": compute_for(request.compute, bundle)})
    bundle = bundle_of(sampling(request), bundle)
    missing = [kind for kind in ("unet", "controlnet") if kind not in bundle.kinds]
    if missing:
        raise InvalidBundleError(
            f"bundle {bundle.name!r} cannot inpaint: it has no {' and no '.join(missing)} to draw what labels say"
        )
    check_modality(bundle, "ct", request.force)
    tumour = None if request.tumor is None else tumour_named(request.tumor, bundle_vocabulary(bundle)).name
    claims = tumour is not None and tumour in bundle.info.tumours
    scale = bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale
    paths = {
        name: path.resolve() for name in ("source", "manifest", "mask", "labels") if (path := getattr(request, name))
    }
    update = {
        "bundle": lasting_name(request.bundle, bundle),
        "controlnet_scale": scale,
        "contrast": request.contrast or ("network" if claims else "reference"),
    }
    return request.model_copy(update=update | paths), bundle


def open_scene(request: InpaintRequest, vocabulary: Vocabulary) -> tuple[Scene, tuple[FileReport, ...]]:
    """The CT and its labels, completed by coarse tissues."""
    assert request.source is not None
    volume, report = open_volume(request.source, request.reading)
    log_findings(request.source, report.findings)
    if request.labels is None:
        return scene_of(volume, None, str(request.source)), (report,)
    given, of_labels = open_labels(request.labels, request.reading, vocabulary)
    log_findings(request.labels, of_labels.findings)
    return scene_of(volume, given, str(request.labels)), (report, of_labels)


def scene_of(volume: Volume, labels: LabelMap | None, name: str) -> Scene:
    """A CT with labels on its grid, or without any with its coarse tissues; `name` is what a refusal is about."""
    try:
        if labels is None:
            return Scene(volume, tissue_labels(volume), is_given=False)
        check_same_grid(labels, volume)
    except (InvalidLabelsError, InvalidVolumeError) as error:
        raise type(error)(f"{name}: {error}") from error
    return Scene(volume, LabelMap(labels.array.astype(np.uint8, copy=False), volume.grid), is_given=True)


def _span(scene: Scene, vocabulary: Vocabulary) -> RegionSpan:
    try:
        return region_span(scene.labels, vocabulary)
    except InvalidLabelsError:
        return estimate_span(scene.volume)
