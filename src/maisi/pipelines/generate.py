"""The road: draw labels, condition, sample, decode.

One page on purpose: everything a generated volume depends on is named here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from maisi.anatomy.bits import label_bits
from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle
from maisi.diffusion.denoiser import denoiser
from maisi.diffusion.sampler import sample
from maisi.errors import InvalidBundleError
from maisi.pipelines.codec import decode_tensor
from maisi.pipelines.conditioning import Conditioning, encode_conditioning, shown_labels
from maisi.pipelines.execution import between_calls, dtype_of, fitted
from maisi.pipelines.labels import LabelSource, file_source, phantom_source
from maisi.pipelines.requests import DEFAULT_REGION, GenerateRequest
from maisi.space.volume import LabelMap, Volume

WORK = ("embed labels", "steer", "denoise", "decode")
"""What of a bundle's work a sample takes."""

OnStage = Callable[[str, int, int], None]
"""Called with the stage ("labels", "sample", "decode"), steps done and steps in all."""


@dataclass(frozen=True)
class Sample:
    """A generated volume with its labels on the same grid."""

    index: int
    volume: Volume
    labels: LabelMap
    span: RegionSpan


def generate(request: GenerateRequest, bundle: Bundle, on_stage: OnStage | None = None) -> Iterator[Sample]:
    """`request.count` samples; sample `i` depends on the seed and `i` alone, not on how many are asked for.

    Stays within `request.memory`; raises `InvalidPlanError` with the least memory that would do.
    """
    labels_of = label_source(request, bundle)
    return draw_samples(request, fitted(bundle, labels_of.grid.shape, request, only=WORK), labels_of, on_stage)


def draw_samples(
    request: GenerateRequest, bundle: Bundle, labels_of: LabelSource, on_stage: OnStage | None = None
) -> Iterator[Sample]:
    """The samples of a request with a bundle that is fitted to it."""
    for index in range(request.count):
        yield generate_one(request, bundle, labels_of, index, on_stage or (lambda stage, done, total: None))


def generate_one(
    request: GenerateRequest, bundle: Bundle, labels_of: LabelSource, index: int, on_stage: OnStage
) -> Sample:
    """Sample `index` of a request."""
    rng, draw = sample_generators(request.seed, index)
    autoencoder, unet = bundle.autoencoder, bundle.unet
    controlnet = bundle.controlnet if "controlnet" in bundle.kinds else None
    dtype, device = dtype_of(request), next(unet.parameters()).device

    on_stage("labels", 0, 1)
    labels, span = labels_of.draw(rng)
    on_stage("labels", 1, 1)

    conditioning = Conditioning(span, labels.grid.spacing, request.modality)
    conditions = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in encode_conditioning(conditioning, unet.config).items()
    }
    shown = shown_labels(labels.array, bundle.info.shown_as)
    denoise = denoiser(
        unet,
        controlnet,
        conditions=conditions,
        bits=label_bits(shown, dtype)[None].to(device) if controlnet is not None else None,
        controlnet_scale=controlnet_scale(request, bundle),
    )
    shape = tuple(n // autoencoder.factor for n in labels.grid.shape)
    noise = torch.randn((1, unet.config.in_channels, *shape), generator=draw)
    noise = noise.to(device).contiguous(memory_format=torch.channels_last_3d)
    with between_calls(request):
        latent = sample(
            denoise,
            bundle.scheduler,
            noise,
            request.steps,
            solver=request.solver,
            generator=draw,
            on_step=lambda done, total: on_stage("sample", done, total),
        )

    on_stage("decode", 0, 1)
    volume = decode_tensor(autoencoder, latent / bundle.scale_factor, labels.grid)
    on_stage("decode", 1, 1)
    return Sample(index, volume, labels, span)


def controlnet_scale(request: GenerateRequest, bundle: Bundle) -> float:
    """How strongly the labels steer: what the request says, else what the bundle was measured with."""
    return bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale


def label_source(request: GenerateRequest, bundle: Bundle) -> LabelSource:
    """The label source that a request names, on a grid that the bundle can make."""
    missing = [kind for kind in ("autoencoder", "unet") if kind not in bundle.kinds]
    if missing:
        raise InvalidBundleError(f"bundle {bundle.name!r} cannot generate: it has no {' and no '.join(missing)}")
    grid = (request.size, request.spacing, bundle.limits, bundle.size_multiple, request.force)
    if request.labels is not None:
        return file_source(
            request.labels, *grid, region=request.region, enclose=request.enclose, numbering=request.numbering
        )
    return phantom_source(request.region or DEFAULT_REGION, *grid)


def sample_generators(seed: int, index: int) -> tuple[np.random.Generator, torch.Generator]:
    """The generators of one sample: numpy for anatomy, torch on the CPU for noise."""
    anatomy, noise = np.random.SeedSequence([seed, index]).spawn(2)
    word = int(noise.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.random.default_rng(anatomy), torch.Generator().manual_seed(word)
