"""The road: draw labels, condition, sample, decode, judge; again, or in part, where that fails.

One page on purpose: everything a generated volume depends on is named here.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.vocabulary import Vocabulary
from maisi.bundle.bundle import Bundle
from maisi.compute.fit import between_calls, fit
from maisi.data.library import Origin
from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.errors import InvalidRequestError, NotDrawnError
from maisi.networks.controlnet import around_hole
from maisi.pipelines.codec import volume_of_unit
from maisi.pipelines.conditioning import Conditioning, modality_of, shown_labels
from maisi.pipelines.guidance import guided_denoiser
from maisi.pipelines.labels import Anatomy, LabelSource
from maisi.pipelines.lesion_contrast import finding_of, lesions_to_tone, with_reference_contrast
from maisi.pipelines.quality.judge import judge, judge_labels
from maisi.pipelines.quality.repair import region_of
from maisi.pipelines.quality.report import Finding, QualityReport
from maisi.pipelines.quality.segmenter import compared, segmenter_of
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import ValidRequest, bundle_vocabulary, validate_generate
from maisi.space.volume import LabelMap, Volume
from maisi.splitting.ranks import Ranks

logger = logging.getLogger(__name__)

LABEL_TRIES = 5
"""How often labels are drawn until they pass their check, which takes next to no time beside a volume."""

OnStage = Callable[[str, int, int], None]
"""Called with the stage ("labels", "sample", "decode", "check"), steps done and steps in all."""


@dataclass(frozen=True)
class Sample:
    """A generated volume with its labels on the same grid, None where it follows none, and what was found of it."""

    index: int
    volume: Volume
    labels: LabelMap | None
    span: RegionSpan
    quality: QualityReport
    source: str = ""
    origin: Origin | None = None  # the map of a library behind its labels

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it fails, a sentence each; none when it passes."""
        return self.quality.reasons


@dataclass(frozen=True)
class Locked:
    """A clean latent (1, c, u, v, w), times the scale factor, that is to stay but where `free` (u, v, w) is true.

    With `strength` below 1 sampling starts from it with that share of the noise, so that what is free keeps its outline
    (SDEdit; Meng et al., 2022).
    """

    clean: Tensor
    free: Tensor
    strength: float = 1.0

    def start(self, scheduler: NoiseScheduler, num_voxels: int) -> float | None:
        """The time that sampling starts at; None for that of noise."""
        if self.strength >= 1:
            return None
        first, last = scheduler.timesteps(1, num_voxels).tolist()
        return float(round(last + self.strength * (first - last)))

    def kept(self, noise: Tensor, scheduler: NoiseScheduler, x: Tensor, t: float) -> Tensor:
        """The latent of time `t` with all that is not free as the clean latent is at that time, with its own noise.

        RePaint (Lugmayr et al., 2022), equation 8, with one noise for all times, so that what is kept walks the path
        that the sampler would lead it.
        """
        return torch.where(self.free.to(x.device), x, self.noisy(noise.to(x), scheduler, t))

    def noisy(self, noise: Tensor, scheduler: NoiseScheduler, t: float) -> Tensor:
        """The clean latent at time `t`."""
        return scheduler.add_noise(self.clean.to(noise), noise, t)


def generate(
    request: GenerateRequest, bundle: Bundle | None = None, on_stage: OnStage | None = None
) -> Iterator[Sample]:
    """`request.count` samples (of each label map of a folder), with the request's bundle or the one given.

    Sample `i` depends on the seed and `i` alone, not on how many are asked for. Stays within `compute.memory`. Raises
    `InvalidRequestError` for what the command line would refuse too, `InvalidPlanError` with the least memory that
    would do.
    """
    valid = validate_generate(request, bundle)
    return draw_all(valid, [fit_to(valid, source) for source in valid.sources], on_stage)


def draw_all(valid: ValidRequest, bundles: list[Bundle], on_stage: OnStage | None) -> Iterator[Sample]:
    """The samples of all sources, each with the bundle fitted to it."""
    for source, bundle in zip(valid.sources, bundles, strict=True):
        for index in valid.request.indices:
            yield draw_one(valid.request, bundle, source, index, on_stage or (lambda stage, done, total: None))


def draw_one(request: GenerateRequest, bundle: Bundle, source: LabelSource, index: int, on_stage: OnStage) -> Sample:
    """Sample `index` of a source: the first try that passes its check, or the last; `quality.passed` tells."""
    anatomy = draw_anatomy(request, bundle, source, index, on_stage)
    seen, locked = seen_labels(anatomy, bundle), None
    for attempt in range(request.quality.tries):
        _, _, of_noise = sample_generators(request.seed, index, attempt)
        latent = draw_latent(request, bundle, anatomy, seen, of_noise, on_stage, locked)
        unit = decode_latent(bundle, latent, on_stage)
        volume = volume_of_unit(unit, anatomy.grid, modality_of(request.modality))
        volume, toned = lesions_toned(volume, anatomy.labels, bundle)

        on_stage("check", 0, 1)
        report = judged(request, bundle, volume, anatomy)
        told = {"tries": attempt + 1, "labels_from": str(anatomy.origin or ""), "findings": (*report.findings, *toned)}
        report = report.model_copy(update=told)
        on_stage("check", 1, 1)
        if report.passed or not report.image_reasons:  # no noise changes what is wrong with the labels
            break
        is_last = attempt + 1 == request.quality.tries
        logger.warning("sample %d: %s; %s", index, "; ".join(report.reasons), "no more tries" if is_last else "again")
        locked = rest_of(request, bundle, anatomy, report, latent)
    return Sample(index, volume, anatomy.labels, anatomy.span, report, source.name, anatomy.origin)


def draw_anatomy(
    request: GenerateRequest, bundle: Bundle, source: LabelSource, index: int, on_stage: OnStage
) -> Anatomy:
    """The anatomy of a sample; labels that fail their check are drawn again before anything is made after them."""
    on_stage("labels", 0, 1)
    if request.labels is not None:  # a user's own are the same in every draw, and fail nothing
        rng, of_labels, _ = sample_generators(request.seed, index)
        anatomy = source.draw(rng, of_labels)
    else:
        tries, afresh = max(request.quality.tries, LABEL_TRIES), request.label_bundle is not None
        anatomy, _ = draw_labels(source, request.seed, index, tries, bundle_vocabulary(bundle), afresh=afresh)
    on_stage("labels", 1, 1)
    return anatomy


def draw_labels(
    source: LabelSource,
    seed: int,
    index: int,
    tries: int,
    vocabulary: Vocabulary,
    *,
    afresh: bool,
    keeps: bool = False,
) -> tuple[Anatomy, QualityReport | None]:
    """The first of so many draws of a source whose labels pass their check, else the last, and the verdict on it.

    With `keeps` the first is taken, whatever the verdict. Where networks draw `afresh`, what lacks something that was
    asked for, or cannot be put right (the border cuts an organ), is drawn again too; elsewhere, and where nothing
    else has come, the draw's error is raised.
    """
    found: tuple[Anatomy, QualityReport | None] | None = None
    for attempt in range(tries):
        rng, of_labels, _ = sample_generators(seed, index, attempt)
        try:
            anatomy = source.draw(rng, of_labels)
        except (InvalidRequestError, NotDrawnError) as error:
            if not afresh or (found is None and attempt + 1 == tries):
                raise
            logger.warning("labels of sample %d, try %d of %d: %s", index, attempt + 1, tries, error)
            continue
        if anatomy.labels is None:
            return anatomy, None
        report = judge_labels(anatomy.labels, asked_ml=anatomy.asked, vocabulary=vocabulary)
        found = anatomy, report.model_copy(update={"tries": attempt + 1})
        if report.passed or keeps:
            break
        logger.warning("labels of sample %d, try %d of %d: %s", index, attempt + 1, tries, report.in_brief)
    assert found is not None, "a source is tried once or more"
    return found


def lesions_toned(volume: Volume, labels: LabelMap | None, bundle: Bundle) -> tuple[Volume, tuple[Finding, ...]]:
    """The volume with lesions that the bundle does not claim to draw in the HU that such lesions have, and which."""
    if labels is None or volume.modality != "ct":
        return volume, ()
    vocabulary = bundle_vocabulary(bundle)
    ids = lesions_to_tone(labels, vocabulary, bundle.info.tumours)
    toned, contrasts = with_reference_contrast(volume, labels, ids, vocabulary)
    return toned, tuple(finding_of(vocabulary.name(id), contrast) for id, contrast in contrasts.items())


def judged(request: GenerateRequest, bundle: Bundle, volume: Volume, anatomy: Anatomy) -> QualityReport:
    """What is found of a volume and of the labels that it is to follow, held to what the bundle promises."""
    settings, labels = request.quality, anatomy.labels
    segmenter = segmenter_of(settings, request.compute.device) if labels is not None else None
    return judge(
        volume,
        labels,
        modality=request.modality,
        asked_ml=anatomy.asked,
        is_given=request.labels is not None,
        held_to=bundle.limits.held_to,
        overlaps=compared(segmenter, volume, labels) if segmenter is not None and labels is not None else None,
        least_dice=settings.least_dice,
        outside_is_air=True,
        vocabulary=bundle_vocabulary(bundle),
    )


def rest_of(
    request: GenerateRequest, bundle: Bundle, anatomy: Anatomy, report: QualityReport, latent: Tensor
) -> Locked | None:
    """What of a latent stays when a sample is repaired; None where all of it is drawn anew."""
    if request.quality.on_failure != "repair" or anatomy.labels is None or not report.is_repairable:
        return None
    return Locked(latent, region_of(report.failing, anatomy.labels, bundle.autoencoder.factor))


def draw_latent(
    request: GenerateRequest,
    bundle: Bundle,
    anatomy: Anatomy,
    seen: Tensor | None,
    generator: torch.Generator,
    on_stage: OnStage,
    locked: Locked | None = None,
) -> Tensor:
    """The latent (1, c, u, v, w) of one sample, times the scale factor; on "meta" nothing is computed.

    `seen` (x, y, z) are the ids that the ControlNet is to see, uint8; None for the U-Net alone. Of `locked` the latent
    is kept wherever it is not free.
    """
    shape = tuple(n // bundle.autoencoder.factor for n in anatomy.grid.shape)
    noise = torch.randn((1, bundle.unet.config.in_channels, *shape), generator=generator)
    noise = noise.to(next(bundle.unet.parameters()).device).contiguous(memory_format=torch.channels_last_3d)
    conditioning = Conditioning(anatomy.span, anatomy.grid.spacing, request.modality)
    with between_calls(request.compute):
        start = None if locked is None else locked.start(bundle.scheduler, noise[0, 0].numel())
        return sample(
            guided_denoiser(request, bundle, conditioning, seen, around(bundle, noise, locked)),
            bundle.scheduler,
            noise if start is None or locked is None else locked.noisy(noise, bundle.scheduler, start),
            request.steps,
            solver=request.solver,
            generator=generator,
            start=start,
            on_step=lambda done, total: on_stage("sample", done, total),
            after_step=None if locked is None else partial(locked.kept, noise, bundle.scheduler),
        )


def decode_latent(bundle: Bundle, latent: Tensor, on_stage: OnStage) -> Tensor:
    """Unit intensities (1, 1, x, y, z) of a latent times the scale factor, on the device of the networks."""
    on_stage("decode", 0, 1)
    with torch.inference_mode():
        unit: Tensor = bundle.autoencoder.decode(latent / bundle.scale_factor)
    on_stage("decode", 1, 1)
    return unit


def around(bundle: Bundle, noise: Tensor, locked: Locked | None) -> Tensor | None:
    """What is locked, as a ControlNet sees it that knows the surroundings of holes; without any, all is one hole."""
    if "controlnet" not in bundle.kinds or not bundle.controlnet.config.sees_surroundings:
        return None
    if locked is None:
        return around_hole(torch.zeros_like(noise), torch.ones_like(noise[:, 0]))
    return around_hole(locked.clean.to(noise), locked.free[None].to(noise.device))


def fit_to(valid: ValidRequest, source: LabelSource, ranks: Ranks | None = None) -> Bundle:
    """The bundle, its networks fitted to the samples of a source; see `compute.fit`."""
    return fit(valid.bundle, valid.request.compute, partial(rehearse, valid.request, source), ranks)


def rehearse(request: GenerateRequest, source: LabelSource, bundle: Bundle) -> None:
    """One step of a sample of a source on the meta device."""
    anatomy = Anatomy(source.grid, source.span, None)
    seen = torch.empty(source.grid.shape, dtype=torch.uint8, device="meta") if steers(request, bundle) else None
    one_step = request.model_copy(update={"steps": 1, "solver": "euler"})
    latent = draw_latent(one_step, bundle, anatomy, seen, torch.Generator(), lambda stage, done, total: None)
    decode_latent(bundle, latent, lambda stage, done, total: None)


def seen_labels(anatomy: Anatomy, bundle: Bundle) -> Tensor | None:
    """The ids (x, y, z) as the ControlNet is to see them; None where there are none, or nobody to see them."""
    if anatomy.labels is None or "controlnet" not in bundle.kinds:
        return None
    return torch.from_numpy(shown_labels(anatomy.labels.array, bundle.info.shown_as))


def steers(request: GenerateRequest, bundle: Bundle) -> bool:
    """Whether a ControlNet makes the samples follow labels."""
    return "controlnet" in bundle.kinds and not request.unlabelled


def sample_generators(
    seed: int, index: int, attempt: int = 0
) -> tuple[np.random.Generator, torch.Generator, torch.Generator]:
    """The generators of one sample: numpy for anatomy, torch on the CPU for networks that draw labels and for noise."""
    entropy = [seed, index] if attempt == 0 else [seed, index, attempt]
    anatomy, noise, labels = np.random.SeedSequence(entropy).spawn(3)
    of_labels, of_noise = (
        torch.Generator().manual_seed(int(each.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for each in (labels, noise)
    )
    return np.random.default_rng(anatomy), of_labels, of_noise
