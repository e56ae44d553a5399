"""Synthetic cases of an experiment, each made of one real training case."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from maisi.anatomy import morphology
from maisi.anatomy.body import complete_labels
from maisi.anatomy.deform import Warp, warped
from maisi.anatomy.lesions import healthy_ids
from maisi.anatomy.tumours import augment_tumours, tumour_named
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle
from maisi.compute.compute import Compute
from maisi.compute.fit import fit as fit_networks
from maisi.compute.machine import fill_defaults
from maisi.data.cases import case_span
from maisi.data.manifest import Case
from maisi.downstream.experiment import Experiment, SyntheticSettings
from maisi.downstream.levels import levelled
from maisi.downstream.plan import patient_of
from maisi.downstream.store import (
    StoredCase,
    body_box,
    classes_in,
    keep,
    known_classes,
    labelled,
    members_of,
    stored,
)
from maisi.errors import InvalidBundleError, InvalidRequestError
from maisi.pipelines.generate import draw_one, rehearse
from maisi.pipelines.inpaint import carry_in, scene_of, validate_scene, with_bundle
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.labels import GivenLabels
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import bundle_vocabulary
from maisi.shapes import Frozen
from maisi.space.grid import Grid
from maisi.space.resample import crop, resample, with_spacing
from maisi.space.volume import LabelMap, Volume

BLUR_VOXELS = 1.8
"""How far the blur of an edge reaches, in voxels of the largest side."""

_TRIES = 4  # draws of a label map whose tumours find no room


class Variant(Frozen):
    """The k-th synthetic case made of a real one."""

    case: Case
    k: int

    @property
    def id(self) -> str:
        return f"{self.case.stem}_synthetic_{self.k}"


def variants_of(training: Sequence[Case], count: int) -> tuple[Variant, ...]:
    """The first `count` synthetic cases of these real ones: one of each in turn, then a second one of each."""
    return tuple(Variant(case=training[n % len(training)], k=n // len(training)) for n in range(count))


def check_can_make(settings: SyntheticSettings) -> None:
    """Nothing, or the refusal of a bundle that there is not or that makes no such cases, or of what is no tumour."""
    bundle = load_bundle(settings.bundle)
    missing = [kind for kind in ("autoencoder", "unet", "controlnet") if kind not in bundle.kinds]
    if missing:
        raise InvalidBundleError(
            f"bundle {bundle.name!r} makes no synthetic cases: it has no {' and no '.join(missing)}; accepted: a "
            "bundle that follows labels"
        )
    if settings.tumour is not None:
        tumour_named(settings.tumour, bundle_vocabulary(bundle))


def make_variant(variant: Variant, experiment: Experiment, folder: Path) -> StoredCase:
    """A synthetic case in files, from the seed of the experiment, the case and its number alone."""
    done = stored(variant.id, folder)
    if done is not None:
        return done
    members, settings = members_of(experiment.structures), experiment.synthetic
    volume, own = labelled(variant.case)
    known = known_classes(variant.case, own, members)
    make = _paired if settings.source == "paired" else _inpainted
    synthetic, labels = make(variant, volume, own, experiment)
    made = StoredCase(
        id=variant.id,
        patient="",
        synthetic=True,
        known=known,
        made_of=(variant.case.id,),
        from_patients=(patient_of(variant.case),),
    )
    return keep(made, synthetic, classes_in(labels, members), folder)


def seed_of(variant: Variant, settings: SyntheticSettings) -> int:
    """A number that no other variant has."""
    words = [settings.seed, variant.k, *variant.case.id.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])


# Paired generation ----------------------------------------------------------------------------------------------------


def _paired(variant: Variant, volume: Volume, own: LabelMap, experiment: Experiment) -> tuple[Volume, LabelMap]:
    """A CT generated after the labels of a case, bent and with their tumours varied."""
    settings, box = experiment.synthetic, body_box(volume)
    volume, own = crop(volume, *box), crop(own, *box)
    grid = with_spacing(volume.grid, (experiment.spacing_mm,) * 3)
    small = resample(volume, grid)
    complete = complete_labels(resample(own, grid), small)
    labels = varied(complete, variant, settings)
    drawn, labels = generated(labels, case_of(variant, own), seed_of(variant, settings), settings)
    return levelled(drawn, labels, small, complete) if settings.levels == "case" else drawn, labels


def case_of(variant: Variant, own: LabelMap) -> GivenLabels:
    """Which regions a case shows, as its label source."""
    return GivenLabels(own, case_span(variant.case, own), variant.case.id)


def varied(labels: LabelMap, variant: Variant, settings: SyntheticSettings) -> LabelMap:
    """A label map bent, and with its tumours varied; without room for those, bent alone."""
    tumours = set(load_vocabulary().group("tumours")) & set(np.unique(labels.array).tolist())
    seed = seed_of(variant, settings)
    sharp = without_blur(labels, tumours) if tumours and settings.strength else labels
    bent = _bent(sharp, np.random.default_rng([seed, 0]), settings.bend)
    for attempt in range(_TRIES if tumours and settings.strength else 0):
        try:
            return augment_tumours(bent, np.random.default_rng([seed, 1, attempt]), strength=settings.strength)
        except InvalidRequestError:
            continue
    return bent


def without_blur(labels: LabelMap, tumours: set[int]) -> LabelMap:
    """The map without the shell of plain tissue that the blur of a CT leaves around a tumour in fat.

    Tissues are told by HU, and the edge of a tumour in fat has those of muscle: where such a tumour moves, its outline
    would stay behind. Voxels of the shell become what its hosts are beyond it.
    """
    vocabulary, ids, reach = load_vocabulary(), labels.array.copy(), BLUR_VOXELS * max(labels.grid.spacing)
    for id in tumours:
        hosts = [each for each in healthy_ids(vocabulary, id) if each not in tumours]
        mask = ids == id
        shell = morphology.dilate(mask, reach, labels.grid.spacing) & (ids == vocabulary.id("body"))
        beyond = np.isin(ids, hosts) & ~shell
        if shell.any() and beyond.any():
            nearest = ndimage.distance_transform_edt(~beyond, labels.grid.spacing, False, True)
            ids[shell] = ids[tuple(axis[shell] for axis in nearest)]
    return LabelMap(ids, labels.grid)


def _bent(labels: LabelMap, rng: np.random.Generator, strength: float) -> LabelMap:
    """The map through a smooth bending of space; beyond its ends it goes on as it ends."""
    if not strength:
        return labels
    widths = [max(4, n // 4) for n in labels.grid.shape]
    wide = _grown(labels, widths, widths)
    middle = labels.grid.world((np.array(labels.grid.shape) - 1) / 2)
    return warped(wide, labels.grid, Warp.drawn(labels.grid, middle, rng, strength))


def _grown(labels: LabelMap, before: Sequence[int], after: Sequence[int]) -> LabelMap:
    array = np.pad(labels.array, list(zip(before, after, strict=True)), mode="edge")
    return LabelMap(array, labels.grid.window([-n for n in before], array.shape))


def generated(labels: LabelMap, source: GivenLabels, seed: int, settings: SyntheticSettings) -> tuple[Volume, LabelMap]:
    """A CT that follows labels, on their grid: they are continued to a size that the networks take, and cut again."""
    bundle, request = _bundle(settings.bundle), _request(settings, seed)
    request = request.model_copy(update={"labels": Path(source.name)})  # given ones are not drawn again
    missing = [-n % bundle.size_multiple for n in labels.grid.shape]
    before = [n // 2 for n in missing]
    wide = _grown(labels, before, [n - b for n, b in zip(missing, before, strict=True)])
    given = GivenLabels(wide, source.span)
    fitted = _fitted(settings.bundle, request.model_copy(update={"seed": 0, "labels": None}), _Place(wide.grid, source))
    drawn = draw_one(request, fitted, given, 0, lambda stage, done, total: None)
    stop = [b + n for b, n in zip(before, labels.grid.shape, strict=True)]
    return crop(drawn.volume, before, stop), labels


def _request(settings: SyntheticSettings, seed: int) -> GenerateRequest:
    bundle = _bundle(settings.bundle)
    return GenerateRequest(
        bundle=settings.bundle,
        seed=seed,
        steps=settings.steps,
        controlnet_scale=bundle.info.controlnet_scale,
        compute=fill_defaults(Compute(threads=torch.get_num_threads())),
    )


@lru_cache(maxsize=1)
def _bundle(name: str) -> Bundle:
    return load_bundle(name, torch.device("cpu"))


class _Place:
    """A label source for rehearsals: a grid and regions, of which two are the same where their sizes are."""

    def __init__(self, grid: Grid, source: GivenLabels) -> None:
        self.given = GivenLabels(LabelMap(np.zeros(grid.shape, np.uint8), grid), source.span)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self.given.grid.shape == other.given.grid.shape

    def __hash__(self) -> int:
        return hash(self.given.grid.shape)


@lru_cache(maxsize=8)
def _fitted(name: str, request: GenerateRequest, place: _Place) -> Bundle:
    return fit_networks(_bundle(name), request.compute, partial(rehearse, request, place.given), None)


# Inpainting -----------------------------------------------------------------------------------------------------------


def _inpainted(variant: Variant, volume: Volume, own: LabelMap, experiment: Experiment) -> tuple[Volume, LabelMap]:
    """The CT of a case with one tumour more, in a place that the labels of the case have room for."""
    settings = experiment.synthetic
    asked = InpaintRequest(
        source=variant.case.image,
        tumor=settings.tumour,
        random=1,
        bundle=settings.bundle,
        seed=seed_of(variant, settings),
        steps=settings.steps,
        compute=Compute(threads=torch.get_num_threads()),
    )
    request, bundle = with_bundle(asked, None)
    scene = scene_of(volume, complete_labels(own, volume), str(variant.case.image))
    result = carry_in(validate_scene(request, bundle, scene, 0), lambda stage, done, total: None)
    labels = LabelMap(np.where(result.mask.array > 0, result.labels.array, own.array).astype(np.uint8), own.grid)
    box = body_box(result.volume)
    small = crop(result.volume, *box)
    grid = with_spacing(small.grid, (experiment.spacing_mm,) * 3)
    return resample(small, grid), resample(crop(labels, *box), grid)
