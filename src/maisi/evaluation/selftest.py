"""Whether a bundle does what it should: three first experiments, and three signatures of what commonly goes wrong.

Every check gives a number and the bound that it is held against. The bounds and the numbers of the packaged bundle are
in `docs/concepts/selftest.md`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maisi.bundle.bundle import Bundle
from maisi.evaluation.adherence import BODY_HU, adherence, dice
from maisi.evaluation.fidelity import box_blur, fidelity
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import decode, encode
from maisi.pipelines.generate import generate, sample_generators
from maisi.pipelines.labels import DEFAULT_GRIDS
from maisi.pipelines.requests import DEFAULT_REGION, GenerateRequest
from maisi.pipelines.validate import label_sources
from maisi.shapes import Frozen
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.volume import LabelMap, Volume
from maisi.splitting import SlabTensor

SPLIT_BOUND = 1e-4  # of the range of a result, float32: rounding of sums in another order
STITCH_BOUND = 1e-4  # of the range of a latent
MORE_DECIBELS = 3.0  # than a box blur of 3^3
LEAST_DICE, MORE_DICE = 0.7, 0.2
PERIODIC_BOUND = 1.4  # times the power around lower frequencies
OVERSHOOT_BOUND = 1.1  # times the spread of a phantom's latents
NOISE_BOUND = 0.5  # of the variance of latents
DETAIL_BOUND = 0.5  # of the energy of differences between neighbours

Decode = Callable[[Tensor, int, int], Tensor]
"""A latent decoded in so many slabs along an axis."""


class Check(Frozen):
    """One measured number and its bound."""

    name: str
    question: str
    number: float | None  # None where the bundle lacks what it takes
    bound: float
    at_least: bool = False
    reason: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the number keeps its bound; None where nothing was measured."""
        if self.number is None:
            return None
        return self.number >= self.bound if self.at_least else self.number <= self.bound


@dataclass(frozen=True)
class Trial:
    """What the checks look at: a phantom with its labels, and what the bundle made of it."""

    bundle: Bundle
    request: GenerateRequest
    phantom: Volume
    labels: LabelMap
    decode_split: Decode

    @classmethod
    def of(cls, bundle: Bundle, request: GenerateRequest, decode_split: Decode | None = None) -> "Trial":
        """The phantom of a request's region, rendered."""
        rng, of_labels, _ = sample_generators(request.seed, 0)
        if "unet" in bundle.kinds:
            (source,) = label_sources(request, bundle)
            labels = source.draw(rng, of_labels).labels
            assert labels is not None
        else:
            region = request.region or DEFAULT_REGION
            usual, spacing = DEFAULT_GRIDS[region]
            labels = draw_phantom(region, Grid.centered(request.size or usual, request.spacing or spacing), rng)
        autoencoder: Any = bundle.autoencoder
        return cls(bundle, request, render_phantom(labels, rng), labels, decode_split or split_decoder(autoencoder))


def split_decoder(autoencoder: Any) -> Decode:
    """Decodes by an autoencoder, slab by slab."""

    def decode_split(latent: Tensor, parts: int, axis: int) -> Tensor:
        with torch.inference_mode():
            result: Tensor = autoencoder.decode(SlabTensor.split(latent, parts, axis)).gather()
        return result

    return decode_split


def selftest(trial: Trial, image: Volume | None = None, steps: int = 10) -> Iterator[Check]:
    """The checks one after the other: splitting, labels, reconstruction (of `image` too), and the three signatures."""
    yield from _splitting(trial)
    yield from _reconstruction(trial.bundle, trial.phantom, "phantom")
    if image is not None:
        yield from _reconstruction(trial.bundle, image, "image")
    yield from _latents(trial)
    if "unet" not in trial.bundle.kinds or "controlnet" not in trial.bundle.kinds:
        for name, question, bound, at_least in _OF_LABELS:
            lacking = "the bundle has no U-Net with a ControlNet"
            yield Check(name=name, question=question, number=None, bound=bound, at_least=at_least, reason=lacking)
        return
    yield from _steering(trial, steps)


# Splitting ------------------------------------------------------------------------------------------------------------


def _splitting(trial: Trial) -> Iterator[Check]:
    """A constant volume and a phantom, whole and in slabs."""
    latent = encode(trial.bundle.autoencoder, trial.phantom).mean
    whole = trial.decode_split(latent, 1, 0)
    span = float(whole.max() - whole.min()) or 1.0
    worst = stitched = 0.0
    for axis in range(3):
        parts = min(latent.shape[2 + axis], 8)
        split = trial.decode_split(latent, parts, axis)
        worst = max(worst, float((split - whole).abs().max()) / span)
        level = torch.full_like(latent, 0.0) + latent.mean((2, 3, 4), keepdim=True)
        factor = whole.shape[2 + axis] // latent.shape[2 + axis]
        borders = [factor * cut for cut in accumulate(SlabTensor.split(level, parts, axis).sizes[:-1])]
        stitched = max(stitched, stitch_step(trial.decode_split(level, parts, axis), borders, axis))
    yield Check(
        name="split equals whole",
        question="largest difference between a decode in slabs and in one piece, of the range",
        number=worst,
        bound=SPLIT_BOUND,
    )
    yield Check(
        name="no seams",
        question="largest step across the borders of slabs where the latent is constant, beyond other planes'",
        number=stitched,
        bound=STITCH_BOUND,
    )


def stitch_step(volume: Tensor, borders: Sequence[int], axis: int) -> float:
    """How much larger the steps across slab borders are than those between their neighbours, of a decoded constant.

    A border is the first plane of a slab. Planes within a quarter of the length from the ends are not looked at: zeros
    beyond the volume change them.
    """
    planes = volume[0, 0].movedim(axis, 0).double()
    num = planes.shape[0]
    steps = (planes[1:] - planes[:-1]).abs().amax((1, 2))
    inner = [b for b in borders if num // 4 < b < num - num // 4]
    if not inner:
        return 0.0
    beside = [float(torch.minimum(steps[b - 2], steps[b])) for b in inner]
    excess = max(float(steps[b - 1]) - near for b, near in zip(inner, beside, strict=True))
    return max(0.0, excess)


# Reconstruction -------------------------------------------------------------------------------------------------------


def _reconstruction(bundle: Bundle, volume: Volume, name: str) -> Iterator[Check]:
    found = decode(bundle.autoencoder, encode(bundle.autoencoder, volume))
    ours, blurred = fidelity(found, volume), fidelity(box_blur(volume), volume)
    yield Check(
        name=f"reconstruction, {name}",
        question="PSNR of encoding and decoding beyond that of a box blur of 3 voxels, dB",
        number=ours.psnr_db - blurred.psnr_db,
        bound=MORE_DECIBELS,
        at_least=True,
    )
    yield Check(
        name=f"structure, {name}",
        question="SSIM of encoding and decoding beyond that of the blur",
        number=ours.ssim - blurred.ssim,
        bound=0.0,
        at_least=True,
    )


# Signatures of the latents --------------------------------------------------------------------------------------------


def _latents(trial: Trial) -> Iterator[Check]:
    autoencoder, volume = trial.bundle.autoencoder, trial.phantom
    latent = encode(autoencoder, volume)
    variance = float(latent.log_variance.double().exp().mean())
    signal = float(latent.mean.double().var((0, 2, 3, 4)).mean())
    found = decode(autoencoder, latent)
    yield Check(
        name="checkerboard",
        question="power of the error around the latent's period, of that around lower frequencies",
        number=periodic_power(found.array - volume.array, latent.factor),
        bound=PERIODIC_BOUND,
    )
    yield Check(
        name="latents hold the volume",
        question="share of the latents' variance that is noise: much of it blurs (too large a KL weight)",
        number=variance / (variance + signal),
        bound=NOISE_BOUND,
    )
    yield Check(
        name="detail",
        question="energy of differences between neighbours, of the phantom's own",
        number=_roughness(found) / _roughness(volume),
        bound=DETAIL_BOUND,
        at_least=True,
    )


def periodic_power(error: np.ndarray, period: int) -> float:
    """The power of an error around the frequency of a period in voxels, over that around lower ones; the worst axis.

    A decoder's pattern is as strong as what it draws: it is an image on a carrier. So lines are multiplied by the
    carrier and averaged over a few periods, which keeps that image and little else. Noise gives about 1.
    """
    found = 1.0
    for axis in range(3):
        lines = np.moveaxis(np.asarray(error, np.float64), axis, 0)
        if lines.shape[0] < 8 * period:
            continue
        around = [_carried(lines, share / period, 4 * period) for share in (1.0, 0.85, 0.7)]
        found = max(found, around[0] / max(float(np.mean(around[1:])), 1e-30))
    return found


def _carried(lines: np.ndarray, frequency: float, window: int) -> float:
    """The power of what a carrier of that frequency (1 / voxels) carries, averaged over windows of the first axis."""
    carrier = np.exp(-2j * np.pi * frequency * np.arange(lines.shape[0]))
    sums = np.cumsum(lines * carrier[:, None, None], axis=0)
    return float(np.square(np.abs(sums[window:] - sums[:-window])).mean())


def _roughness(volume: Volume) -> float:
    unit = to_unit(volume.array, volume.modality).astype(np.float64)
    return float(sum(np.square(np.diff(unit, axis=axis)).sum() for axis in range(3)))


# Labels ---------------------------------------------------------------------------------------------------------------

_OF_LABELS: Sequence[tuple[str, str, float, bool]] = (
    (
        "labels are followed",
        "mean Dice of body, bones and lungs as HU show them, with the ControlNet",
        LEAST_DICE,
        True,
    ),
    ("the ControlNet does it", "that Dice beyond the same without the ControlNet", MORE_DICE, True),
    (
        "steering is not too strong",
        "spread of a sample's latents, of that of the phantom's (too large a ControlNet scale)",
        OVERSHOOT_BOUND,
        False,
    ),
)


def _steering(trial: Trial, steps: int) -> Iterator[Check]:
    request = trial.request.model_copy(update={"steps": steps})
    (steered,) = generate(request, trial.bundle)
    (free,) = generate(request.model_copy(update={"controlnet_scale": 0.0}), trial.bundle)
    assert steered.labels is not None
    followed = mean_dice(steered.volume, steered.labels)
    numbers = (
        followed,
        followed - mean_dice(free.volume, steered.labels),
        overshoot(steered.volume, trial.phantom, trial.bundle),
    )
    for (name, question, bound, at_least), number in zip(_OF_LABELS, numbers, strict=True):
        yield Check(name=name, question=question, number=number, bound=bound, at_least=at_least)


def mean_dice(volume: Volume, labels: LabelMap) -> float:
    """The mean Dice of body, bones and lungs, see `adherence`; what the map lacks does not count."""
    found = adherence(volume, labels)
    scores = [score for score in (found.body, found.bones, found.lungs) if score is not None]
    return float(np.mean(scores)) if scores else dice(volume.array > BODY_HU, labels.array > 0)


def overshoot(volume: Volume, phantom: Volume, bundle: Bundle) -> float:
    """How much wider the latents of a generated volume spread than those of a phantom of the same map.

    Of the channel where it is most. Labels that steer too strongly drive latents beyond those of any scan, and with
    them contrast: bones shine, edges ring.
    """
    spreads = [encode(bundle.autoencoder, each).mean.double().std((0, 2, 3, 4)) for each in (volume, phantom)]
    return float((spreads[0] / spreads[1].clamp(min=1e-12)).max())
