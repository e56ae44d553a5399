"""Labels of a CT from labelled ones: atlases, deformed onto it, vote; what its Hounsfield units show decides with them.

Registration is elastix's (Klein et al., 2010, IEEE TMI 29(1); affine, then B-splines, by mutual information). An atlas
without an image takes part as a rendered one. Such labels are pseudo-labels: they may train, and measure nothing.
"""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.body import enclosed, tissue_labels
from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidRequestError, RunError
from maisi.phantom.render import render_phantom
from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume

logger = logging.getLogger(__name__)

GRID_MM = 3.0  # registration works at this spacing
SHARED_MM = 60.0  # an atlas that shows less of the same height is not used
MOST_ATLASES = 3
MOST_UNLIKE = 0.24  # profiles of an atlas that is used
UNSEEN_COST = 0.3  # of an atlas that shows nothing of the image's planes, where 1 is a wholly unlike profile
LEAST_AGREEMENT = 0.5  # of the atlases that name a structure here; less is left to the tissues
REACH_MM = 15.0  # how far bone and lung may lie from where the atlases have theirs
LEAST_STRUCTURES = 20  # in an atlas
UNSURE = ("bowel", "adrenals", "gallbladder", "pancreas", "portal vein and splenic vein", "hepatic vessel")
"""Structures and groups that registration does not find (Dice below 0.35 in `docs/guides/prepare.md`): not named."""
TISSUES = ("skeleton", "lungs", "fat", "body", "air")
_OUTSIDE_HU = -1024.0


@dataclass(frozen=True)
class Atlas:
    """A labelled CT, or a label map with a rendered one, at `GRID_MM`."""

    name: str
    volume: Volume
    labels: LabelMap
    tissues: LabelMap
    rendered: bool = False


@dataclass(frozen=True)
class Voted:
    """The labels of a CT, the atlases that voted, and their mean agreement on each structure (0 to 1) by name."""

    labels: LabelMap
    atlases: tuple[str, ...]
    agreement: dict[str, float]


def read_atlases(manifest: Path, leave_out: Sequence[str] = ()) -> list[Atlas]:
    """The training cases of a manifest that label enough structures; `leave_out` names ids of cases.

    Raises `InvalidRequestError` where there is none.
    """
    cases = [c for c in read_manifest(manifest) if c.split == "training" and c.id not in leave_out]
    found = [atlas for case in cases if (atlas := _atlas(case)) is not None]
    if not found:
        raise InvalidRequestError(
            f"{manifest} has no atlas; accepted: training cases of CT with {LEAST_STRUCTURES} structures or more"
        )
    return found


def _atlas(case: Case) -> Atlas | None:
    labels = own_labels(case) if case.modality == "ct" else None
    if labels is None or len(np.unique(labels.array)) <= LEAST_STRUCTURES:
        return None
    coarse = resample(labels, _coarse(labels.grid))
    if case.image is None:
        whole = coarse if load_vocabulary().id("body") in coarse.array else enclosed(coarse)
        volume = render_phantom(whole, np.random.default_rng([*case.id.encode()]))
    else:
        volume = resample(case_volume(case), coarse.grid)
    return Atlas(case.id, volume, coarse, tissue_labels(volume, fat=False), case.image is None)


def _coarse(grid: Grid) -> Grid:
    return with_spacing(grid, (GRID_MM, GRID_MM, GRID_MM))


def vote(volume: Volume, atlases: Sequence[Atlas]) -> Voted:
    """The labels of a CT, on its grid.

    The atlases that are like it at their best height are brought there. Of those that name a structure and reach a
    voxel, `LEAST_AGREEMENT` must put the structure there. Lungs, bones and fat are where Hounsfield units show them: a
    lobe or a rib is the one voted for nearest by. Tumours of atlases are not taken over.
    """
    vocabulary, coarse = load_vocabulary(), resample(volume, _coarse(volume.grid))
    tissues = tissue_labels(coarse, fat=False)
    moved = []
    for match in best_matches(tissues, atlases):
        moved.append((match, registered(coarse, tissues, match.atlas, match.shift_mm)))
        logger.info("%s was brought onto the image, moved up by %.0f mm", match.atlas.name, match.shift_mm)
    if not moved:
        raise InvalidRequestError(
            f"no atlas shows {SHARED_MM:g} mm of what the image shows; accepted: an image of the same body region"
        )
    ids, share = fused(moved)
    fine = resample(LabelMap(ids, coarse.grid), volume.grid)
    whole = _with_tissues(fine.array, tissue_labels(volume).array, volume.grid, vocabulary)
    agreement = {vocabulary.name(id): float(share[ids == id].mean()) for id in np.unique(ids).tolist() if id}
    return Voted(LabelMap(whole, volume.grid), tuple(match.atlas.name for match, _ in moved), agreement)


# --- which atlases, and at what height ---


@dataclass(frozen=True)
class Match:
    """An atlas at its height in an image: how far (mm) it is to be moved up, and how unlike (0 to 1) it is there."""

    atlas: Atlas
    shift_mm: float
    unlike: float

    @property
    def weight(self) -> float:
        """Of its vote; that of a rendered one counts half."""
        return (0.5 if self.atlas.rendered else 1.0) / (0.05 + self.unlike)


def best_matches(tissues: LabelMap, atlases: Sequence[Atlas]) -> list[Match]:
    """The atlases that fit, best first."""
    profile = _profile(tissues)
    found = [(*_height(profile, _profile(atlas.tissues)), atlas) for atlas in atlases]
    fitting = sorted((cost, place, atlas.name, atlas) for cost, place, atlas in found if cost <= MOST_UNLIKE)
    low = tissues.grid.origin[2]
    return [
        Match(atlas, float(low + GRID_MM * place - atlas.tissues.grid.origin[2]), cost)
        for cost, place, _, atlas in fitting[:MOST_ATLASES]
    ]


def _profile(tissues: LabelMap) -> np.ndarray:
    """Areas (cm2) of body, lungs and bone in every plane, [3, z]."""
    vocabulary = load_vocabulary()
    masks = (tissues.array > 0, *(tissues.array == vocabulary.id(name) for name in ("lungs", "skeleton")))
    area = float(np.prod(tissues.grid.spacing[:2])) / 100
    weights = (0.3, 1.0, 2.0)
    return np.stack([weight * area * mask.sum((0, 1)) for weight, mask in zip(weights, masks, strict=True)])


def _height(image: np.ndarray, atlas: np.ndarray) -> tuple[float, int]:
    """How unlike profiles are (0 to 1, more where planes are unseen) at the best place of the atlas, and that place."""
    least = min(round(SHARED_MM / GRID_MM), image.shape[1])
    best = (np.inf, 0)
    for place in range(least - atlas.shape[1], image.shape[1] - least + 1):
        start, stop = max(0, place), min(image.shape[1], place + atlas.shape[1])
        if stop - start < least:
            continue
        here, there = image[:, start:stop], atlas[:, start - place : stop - place]
        unlike = float(np.abs(here - there).sum() / (here + there).sum())
        cost = unlike + UNSEEN_COST * (1 - (stop - start) / image.shape[1])
        best = min(best, (cost, place))
    return best


# --- registration ---


def registered(image: Volume, tissues: LabelMap, atlas: Atlas, shift_mm: float) -> np.ndarray:
    """The ids of an atlas on the grid of an image, uint8; 255 where the atlas does not reach."""
    itk = elastix()
    shift = np.array([*_sideways(tissues, atlas.tissues, shift_mm), shift_mm])
    moving = _itk_image(itk, atlas.volume.array, atlas.volume.grid, shift)
    fixed = _itk_image(itk, image.array, image.grid)
    mask = ndimage.binary_dilation(tissues.array > 0, iterations=3)
    _, parameters = itk.elastix_registration_method(
        fixed,
        moving,
        parameter_object=_parameters(itk),
        fixed_mask=_itk_image(itk, mask.astype(np.uint8), image.grid),
        log_to_console=False,
    )
    for index in range(parameters.GetNumberOfParameterMaps()):
        parameters.SetParameter(index, "FinalBSplineInterpolationOrder", "0")
        parameters.SetParameter(index, "DefaultPixelValue", "255")
        parameters.SetParameter(index, "ResultImagePixelType", "float")
    labels = _itk_image(itk, atlas.labels.array.astype(np.float32), atlas.labels.grid, shift)
    result = itk.transformix_filter(labels, parameters, log_to_console=False)
    return np.rint(itk.array_from_image(result)).astype(np.uint8).transpose(2, 1, 0)


def _sideways(tissues: LabelMap, moving: LabelMap, shift_mm: float) -> np.ndarray:
    """How far (mm, x and y) the middle of the atlas' body is from that of the image, at the height they share."""
    z = tissues.grid.origin[2] + GRID_MM * np.arange(tissues.grid.shape[2])
    other = moving.grid.origin[2] + shift_mm + GRID_MM * np.arange(moving.grid.shape[2])
    low, high = max(z[0], other[0]), min(z[-1], other[-1])
    middles = []
    for labels, heights in ((tissues, z), (moving, other)):
        mask = labels.array[:, :, (heights >= low - 1e-3) & (heights <= high + 1e-3)] > 0
        where = np.argwhere(mask.any(2))
        middles.append(labels.grid.world(np.array([*(where.min(0) + where.max(0)) / 2, 0.0]))[:2])
    return np.asarray(middles[0] - middles[1])


def elastix() -> Any:
    """The module of ITK with elastix; raises `RunError` where it is not installed."""
    try:
        return importlib.import_module("itk")
    except ImportError as error:
        raise RunError("registration needs elastix; install it with: pip install 'maisi[register]'") from error


def _itk_image(itk: Any, array: np.ndarray, grid: Grid, shift: np.ndarray | None = None) -> Any:
    """An image of ITK on the axes of ours; elastix needs no more than that both agree."""
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0), kind))
    image.SetSpacing([float(s) for s in grid.spacing])
    image.SetOrigin([float(o) for o in np.asarray(grid.origin) + (0 if shift is None else shift)])
    return image


def _parameters(itk: Any) -> Any:
    settings = itk.ParameterObject.New()
    common = {
        "MaximumNumberOfIterations": ["250"],
        "NumberOfSpatialSamples": ["2500"],
        "NumberOfResolutions": ["3"],
        "Interpolator": ["LinearInterpolator"],
        "MaximumNumberOfSamplingAttempts": ["8"],
        "NewSamplesEveryIteration": ["true"],
        "ImageSampler": ["RandomCoordinate"],
        "NumberOfHistogramBins": ["32"],
        "DefaultPixelValue": [str(_OUTSIDE_HU)],
        "RandomSeed": ["2026"],
        "AutomaticTransformInitialization": ["false"],
        "ErodeMask": ["false"],
        "WriteResultImage": ["false"],
        "RequiredRatioOfValidSamples": ["0.05"],
    }
    affine = settings.GetDefaultParameterMap("affine", 3)
    spline = settings.GetDefaultParameterMap("bspline", 3)
    for parameters in (affine, spline):
        for name, value in common.items():
            parameters[name] = value
    spline["Registration"] = ["MultiMetricMultiResolutionRegistration"]
    spline["Metric"] = ["AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"]
    spline["Metric0Weight"], spline["Metric1Weight"] = ["1.0"], ["20.0"]
    spline["FinalGridSpacingInPhysicalUnits"] = ["24.0"]
    spline["GridSpacingSchedule"] = ["4.0", "2.0", "1.0"]
    settings.AddParameterMap(affine)
    settings.AddParameterMap(spline)
    return settings


# --- the vote ---


def fused(moved: Sequence[tuple[Match, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The id of the greatest share of votes in every voxel, 0 below `LEAST_AGREEMENT`, and that share."""
    vocabulary = load_vocabulary()
    unsure = {id for name in UNSURE for id in vocabulary.members(name)}
    passed_over = {*(vocabulary.id(name) for name in TISSUES), *unsure, *lesion_ids(vocabulary), 0}
    best = np.full(moved[0][1].shape, LEAST_AGREEMENT - 1e-6, np.float32)
    ids = np.zeros(best.shape, np.uint8)
    named = [set(np.unique(match.atlas.labels.array).tolist()) for match, _ in moved]
    reaches = [array != 255 for _, array in moved]
    for id in sorted(set().union(*named) - passed_over):
        votes, voters = np.zeros_like(best), np.zeros_like(best)
        for (match, array), structures, reach in zip(moved, named, reaches, strict=True):
            if id in structures:
                voters += match.weight * reach
                votes += match.weight * (array == id)
        share = votes / np.maximum(voters, 1e-6)
        better = share > best
        ids[better], best = id, np.where(better, share, best)
    return ids, np.where(ids > 0, best, 0)


def _with_tissues(voted: np.ndarray, tissues: np.ndarray, grid: Grid, vocabulary: Vocabulary) -> np.ndarray:
    """Voted names where the tissues of the image allow them."""
    skeleton, lung, body, air = (vocabulary.id(name) for name in ("skeleton", "lungs", "body", "air"))
    bones = [*vocabulary.group("bones"), *vocabulary.group("cartilages")]
    airways, lobes = vocabulary.group("airways"), [id for id in vocabulary.group("lungs") if id != lung]
    result = tissues.copy()
    soft = tissues == body
    named = _kept_parts(np.where(np.isin(voted, [*bones, *lobes, *airways]), 0, voted), grid)
    result = np.where((named > 0) & soft, named, result)
    for ids, tissue in ((bones, skeleton), (lobes, lung)):
        result = np.where(tissues == tissue, _nearest(voted, ids, grid, tissue), result)
    return np.where(np.isin(voted, airways) & np.isin(tissues, (air, body)), voted, result).astype(np.uint8)


def _kept_parts(ids: np.ndarray, grid: Grid) -> np.ndarray:
    """Without the parts of a structure that are small beside its largest."""
    result = ids.copy()
    for id, box in enumerate(ndimage.find_objects(ids), start=1):
        if box is not None:
            numbered, sizes = morphology.parts(ids[box] == id)
            small = sizes < 0.2 * sizes[1:].max()
            small[0] = False
            result[box][small[numbered]] = 0
    return result


def _nearest(voted: np.ndarray, ids: Sequence[int], grid: Grid, otherwise: int) -> np.ndarray:
    """The nearest of some ids in every voxel, `otherwise` where none is within `REACH_MM`."""
    found = np.isin(voted, ids)
    if not found.any():
        return np.full(voted.shape, otherwise, np.uint8)
    far, where = ndimage.distance_transform_edt(~found, sampling=grid.spacing, return_indices=True)
    return np.where(far <= REACH_MM, voted[tuple(where)], np.uint8(otherwise))
