"""The road: draw labels, condition, sample, decode, check.

One page on purpose: everything a generated volume depends on is named here.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle
from maisi.compute.fit import between_calls, fit
from maisi.compute.machine import dtype_of
from maisi.diffusion.denoiser import denoiser
from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.controlnet import ControlNet, around_hole
from maisi.pipelines.check import problems_of
from maisi.pipelines.codec import volume_of_unit
from maisi.pipelines.conditioning import Conditioning, encode_conditioning, modality_of, shown_labels
from maisi.pipelines.labels import Anatomy, LabelSource
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import ValidRequest, validate_generate
from maisi.space.volume import LabelMap, Volume
from maisi.splitting.ranks import Ranks

logger = logging.getLogger(__name__)

OnStage = Callable[[str, int, int], None]
"""Called with the stage ("labels", "sample", "decode", "check"), steps done and steps in all."""


@dataclass(frozen=True)
class Sample:
    """A generated volume with its labels on the same grid, None where it follows none, and what its check found."""

    index: int
    volume: Volume
    labels: LabelMap | None
    span: RegionSpan
    source: str = ""
    problems: tuple[str, ...] = ()


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
        for index in range(valid.request.count):
            yield draw_one(valid.request, bundle, source, index, on_stage or (lambda stage, done, total: None))


def draw_one(request: GenerateRequest, bundle: Bundle, source: LabelSource, index: int, on_stage: OnStage) -> Sample:
    """Sample `index` of a source; one that fails its check is drawn anew, as often as the request says."""
    for attempt in range(1 + request.redraws):
        rng, of_labels, of_noise = sample_generators(request.seed, index, attempt)

        on_stage("labels", 0, 1)
        anatomy = source.draw(rng, of_labels)
        on_stage("labels", 1, 1)

        unit = draw_unit(request, bundle, anatomy, seen_labels(anatomy, bundle), of_noise, on_stage)
        volume = volume_of_unit(unit, anatomy.grid, modality_of(request.modality))

        on_stage("check", 0, 1)
        problems = problems_of(volume, anatomy.labels)
        on_stage("check", 1, 1)
        if not problems:
            break
        again = "drawn anew" if attempt < request.redraws else "kept"
        logger.warning("sample %d: %s; %s", index, "; ".join(problems), again)
    return Sample(index, volume, anatomy.labels, anatomy.span, source.name, tuple(problems))


def draw_unit(
    request: GenerateRequest,
    bundle: Bundle,
    anatomy: Anatomy,
    seen: Tensor | None,
    generator: torch.Generator,
    on_stage: OnStage,
    locked: Locked | None = None,
) -> Tensor:
    """Unit intensities (1, 1, x, y, z) of one sample, on the device of the networks; on "meta" nothing is computed.

    `seen` (x, y, z) are the ids that the ControlNet is to see, uint8; None for the U-Net alone. Of `locked` the latent
    is kept wherever it is not free.
    """
    autoencoder, unet = bundle.autoencoder, bundle.unet
    dtype, device = dtype_of(request.compute), next(unet.parameters()).device
    conditioning = Conditioning(anatomy.span, anatomy.grid.spacing, request.modality)
    conditions = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in encode_conditioning(conditioning, unet.config).items()
    }
    shape = tuple(n // autoencoder.factor for n in anatomy.grid.shape)
    noise = torch.randn((1, unet.config.in_channels, *shape), generator=generator)
    noise = noise.to(device).contiguous(memory_format=torch.channels_last_3d)
    with between_calls(request.compute):
        start = None if locked is None else locked.start(bundle.scheduler, noise[0, 0].numel())
        first = noise if start is None or locked is None else locked.noisy(noise, bundle.scheduler, start)
        latent = sample(
            denoiser(
                unet,
                bundle.controlnet if seen is not None else None,
                conditions=conditions,
                embedding=None if seen is None else embedded(bundle.controlnet, seen.to(device), noise, locked, dtype),
                controlnet_scale=controlnet_scale(request, bundle),
            ),
            bundle.scheduler,
            first,
            request.steps,
            solver=request.solver,
            generator=generator,
            start=start,
            on_step=lambda done, total: on_stage("sample", done, total),
            after_step=None if locked is None else partial(locked.kept, noise, bundle.scheduler),
        )

    on_stage("decode", 0, 1)
    with torch.inference_mode():
        unit: Tensor = autoencoder.decode(latent / bundle.scale_factor)
    on_stage("decode", 1, 1)
    return unit


@torch.no_grad()
def embedded(controlnet: ControlNet, seen: Tensor, noise: Tensor, locked: Locked | None, dtype: torch.dtype) -> Tensor:
    """The ids (x, y, z) as the ControlNet sees them, and what is locked where it sees the surroundings of a hole."""
    embedding = controlnet.embed_condition(label_bits(seen, dtype)[None])
    if not controlnet.config.sees_surroundings:
        return embedding
    clean = torch.zeros_like(noise) if locked is None else locked.clean.to(noise)
    hole = torch.ones_like(noise[:, 0]) if locked is None else locked.free[None].to(noise.device)
    return embedding + controlnet.embed_surroundings(around_hole(clean, hole).to(dtype))


def fit_to(valid: ValidRequest, source: LabelSource, ranks: Ranks | None = None) -> Bundle:
    """The bundle, its networks fitted to the samples of a source; see `compute.fit`."""
    return fit(valid.bundle, valid.request.compute, partial(rehearse, valid.request, source), ranks)


def rehearse(request: GenerateRequest, source: LabelSource, bundle: Bundle) -> None:
    """One step of a sample of a source on the meta device."""
    anatomy = Anatomy(source.grid, source.span, None)
    seen = torch.empty(source.grid.shape, dtype=torch.uint8, device="meta") if steers(request, bundle) else None
    one_step = request.model_copy(update={"steps": 1, "solver": "euler"})
    draw_unit(one_step, bundle, anatomy, seen, torch.Generator(), lambda stage, done, total: None)


def seen_labels(anatomy: Anatomy, bundle: Bundle) -> Tensor | None:
    """The ids (x, y, z) as the ControlNet is to see them; None where there are none, or nobody to see them."""
    if anatomy.labels is None or "controlnet" not in bundle.kinds:
        return None
    return torch.from_numpy(shown_labels(anatomy.labels.array, bundle.info.shown_as))


def steers(request: GenerateRequest, bundle: Bundle) -> bool:
    """Whether a ControlNet makes the samples follow labels."""
    return "controlnet" in bundle.kinds and not request.unlabelled


def controlnet_scale(request: GenerateRequest, bundle: Bundle) -> float:
    """How strongly the labels steer: what the request says, else what the bundle was measured with."""
    return bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale


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
