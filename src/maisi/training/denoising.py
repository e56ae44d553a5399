"""What denoising networks learn from: batches of noisy latents, what is told of them, and how wrong an answer is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from maisi.anatomy.slots import OPEN, full_volumes, measured_sizes
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.latents import LatentExample
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.unet import UNetConfig
from maisi.pipelines.conditioning import UNKNOWN_MODALITY, condition_tensors, general_code
from maisi.shapes import Frozen, LatentBatch, PredictionBatch
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap


class ConditionDropout(Frozen):
    """How often an example is told less than is known of it, so that guidance has something to compare with.

    Each is dropped by itself. A region span or a spacing that is dropped becomes zeros, which none has; a modality the
    code 0. With `general_modality` a kind of CT or MR (with contrast, T1, ...) is told as CT or MR alone. The size of
    each structure that a label generator is told of is left open by itself, and all of them at once with `all_sizes`.
    """

    region: float = Field(default=0.0, ge=0, le=1)
    spacing: float = Field(default=0.0, ge=0, le=1)
    modality: float = Field(default=0.1, ge=0, le=1)
    general_modality: float = Field(default=0.1, ge=0, le=1)
    size: float = Field(default=0.0, ge=0, le=1)
    all_sizes: float = Field(default=0.0, ge=0, le=1)


def told(
    examples: Sequence[LatentExample], dropout: ConditionDropout, config: UNetConfig, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The conditions of a U-Net, a row for each example."""
    rows = []
    for example in examples:
        no_region, no_spacing, no_modality, general = (
            rng.random() < chance
            for chance in (dropout.region, dropout.spacing, dropout.modality, dropout.general_modality)
        )
        code = general_code(example.modality) if general else example.modality
        rows.append(
            condition_tensors(
                None if no_region else example.span,
                None if no_spacing else example.spacing,
                UNKNOWN_MODALITY if no_modality else code,
                config,
                () if config.context_channels is None else told_sizes(example, dropout, rng),
            )
        )
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def told_sizes(example: LatentExample, dropout: ConditionDropout, rng: np.random.Generator) -> list[float]:
    """The sizes of structures in the labels of an example, as far as they are told."""
    assert example.labels is not None, "sources of labelled latents give labels"
    labels = LabelMap(example.labels.numpy(), Grid.centered(example.labels.shape, example.spacing))
    none = rng.random() < dropout.all_sizes
    return [
        OPEN if none or rng.random() < dropout.size else size
        for size in measured_sizes(labels, tuple(full_volumes())).values()
    ]


@dataclass(frozen=True)
class NoisyBatch:
    """Latents of one shape with noise of some times, and what the network is to make of them."""

    clean: LatentBatch
    noisy: LatentBatch
    t: Tensor  # (b,), float64, on the CPU
    target: LatentBatch

    @classmethod
    def of(cls, clean: LatentBatch, noise: LatentBatch, t: Tensor, scheduler: NoiseScheduler) -> "NoisyBatch":
        """The batch for clean latents, times the scale factor, and unit noise."""
        return cls(clean, scheduler.add_noise(clean, noise, t), t, scheduler.target(clean, noise, t))

    @classmethod
    def drawn(
        cls,
        examples: Sequence[LatentExample],
        scale_factor: float,
        scheduler: NoiseScheduler,
        draw: torch.Generator,
        device: torch.device,
    ) -> "NoisyBatch":
        """The batch of examples, noise and times drawn on the CPU: one seed, one run on any device."""
        clean = torch.cat([example.latent for example in examples]) * scale_factor
        noise = torch.randn(clean.shape, generator=draw)
        t = scheduler.sample_times(len(examples), draw, clean[0, 0].numel())
        return cls.of(clean.to(device), noise.to(device), t, scheduler)


class Error(Frozen):
    """How the distance of a number from what it should be counts: as it is, squared, or as Huber's of that width."""

    kind: Literal["l1", "l2", "huber"] = "l1"
    huber_delta: float = Field(default=1.0, gt=0)

    def of(self, prediction: PredictionBatch, target: PredictionBatch) -> Tensor:
        """What every number of a prediction counts, in float32."""
        if self.kind == "huber":
            return F.huber_loss(prediction.float(), target.float(), reduction="none", delta=self.huber_delta)
        error = prediction.float() - target.float()
        return error.abs() if self.kind == "l1" else error.square()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of (b, c, u, v, w) values with weights (u, v, w) of all samples, or (b, 1, u, v, w)."""
    return (values * weights).mean() / weights.mean()


def weights_of(
    examples: Sequence[LatentExample],
    size: Sequence[int],
    structure_weights: Mapping[str, float],
    vocabulary: Vocabulary,
    device: torch.device,
) -> Tensor:
    """The `loss_weights` (b, 1, u, v, w) of a batch; ones (u, v, w) where no structure weighs more."""
    if not structure_weights:
        return torch.ones(tuple(size), device=device)
    each = []
    for example in examples:
        assert example.labels is not None, "sources of labelled latents give labels"
        each.append(loss_weights(example.labels.to(device), size, structure_weights, vocabulary))
    return torch.stack(each)[:, None]


def loss_weights(
    labels: Tensor,
    size: Sequence[int],
    structure_weights: Mapping[str, float],
    vocabulary: Vocabulary | None = None,
) -> Tensor:
    """How much each latent voxel (u, v, w) counts: as the weightiest structure in it or next to it, or 1.

    `labels` (x, y, z) are those of its volume. A thin bone is a small part of a crop, so that a plain mean hardly
    notices it; the neighbours count too, since a bone that is too thick is as wrong. Upstream weighs tumours so.
    """
    vocabulary = vocabulary or load_vocabulary()
    weights = torch.ones(tuple(labels.shape), device=labels.device)
    for name, weight in structure_weights.items():
        shown = torch.isin(labels, torch.tensor(vocabulary.members(name), device=labels.device))
        weights = torch.where(shown, weights.clamp(min=weight), weights)
    pooled = F.adaptive_max_pool3d(weights[None], tuple(size))
    return F.max_pool3d(pooled, kernel_size=3, stride=1, padding=1)[0]
