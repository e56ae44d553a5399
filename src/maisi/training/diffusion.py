"""Training of the denoising U-Net on stored latents (MAISI, arXiv 2409.11169, section 3.2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.compute.compute import Device
from maisi.data.latents import LatentExample, LatentSource
from maisi.diffusion.denoiser import predict
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.errors import InvalidRequestError
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.conditioning import condition_tensors
from maisi.shapes import Frozen, Size3
from maisi.training.learner import Learner, MicroBatch, mixed_precision
from maisi.training.loop import LoopConfig, OnStep, fit, step_generators, training_device
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState

UNKNOWN_MODALITY = 0
TOP, BOTTOM, SPACING = "top_region", "bottom_region", "spacing"


class DiffusionTraining(Frozen):
    """Recipe of a denoising U-Net; sizes are in latent voxels, one is drawn for every example."""

    network: UNetConfig = UNetConfig()
    loop: LoopConfig
    optimization: Optimization = Optimization()
    sizes: tuple[Size3, ...] = ((32, 32, 32),)
    loss: Literal["l1", "l2", "huber"] = "l1"
    huber_delta: float = Field(default=1.0, gt=0)
    structure_weights: dict[str, float] = Field(default_factory=dict)  # of structures or groups; all else counts 1
    drop_modality: float = Field(default=0.1, ge=0, le=1)
    drop_region: float = Field(default=0.0, ge=0, le=1)
    drop_spacing: float = Field(default=0.0, ge=0, le=1)
    validation_examples: int = Field(default=8, ge=1)
    device: Device = "cpu"

    @field_validator("structure_weights")
    @classmethod
    def _known_structures(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            load_vocabulary().members(name)
            if weight < 1:
                raise ValueError(f"the weight of {name} must be at least 1, what all else counts; got {weight}")
        return weights


def train_unet(
    config: DiffusionTraining,
    source: LatentSource,
    scheduler: NoiseScheduler,
    scale_factor: float,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    *,
    validation: LatentSource | None = None,
    start: DenoisingUNet | None = None,
) -> DenoisingUNet:
    """The averaged U-Net after the run, on `config.device`; resumes from `folder` after a stop.

    `start` gives weights to begin with, of the same network. Every `loop.validate_every` steps the loss of `validation`
    is told, at the same noise and times each time.
    """
    device = training_device(config.device)
    loop = config.loop.counted(source.num_cases, config.optimization.accumulate)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        unet = DenoisingUNet(config.network)
    if start is not None:
        if start.config != config.network:
            raise InvalidRequestError("the bundle's U-Net is of another network than the recipe's")
        unet.load_state_dict(start.state_dict())
    unet = unet.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learner = Learner({"unet": unet}, config.optimization, loop.steps)
    state = TrainingState()
    learner.join(state)
    examples = Examples(config, source, scheduler, scale_factor)

    def answer_of(network: Any) -> Answer:
        def answer(noisy: Tensor, t: Tensor, conditions: dict[str, Tensor], example: LatentExample) -> Tensor:
            return predict(network, None, noisy, t, conditions=conditions)

        return answer

    def take_step(step: int) -> dict[str, float]:
        return learner.update(step, examples.batches(step, answer_of(unet)))

    validate = validation_of(config, validation, scheduler, scale_factor, answer_of(learner.averages["unet"]))
    fit(state, take_step, loop, folder, on_step, until, validate)
    average = learner.averages["unet"]
    assert isinstance(average, DenoisingUNet)
    return average


Answer = Callable[[Tensor, Tensor, dict[str, Tensor], LatentExample], Tensor]


def validation_of(
    config: DiffusionTraining,
    source: LatentSource | None,
    scheduler: NoiseScheduler,
    scale_factor: float,
    answer: Answer,
) -> Callable[[int], dict[str, float]] | None:
    """What measures the loss on held-out latents, with the same noise and times each time; None without any."""
    if source is None:
        return None
    more = {"loop": config.loop.model_copy(update={"seed": config.loop.seed + 1}), "drop_modality": 0.0}
    dropped = {"drop_region": 0.0, "drop_spacing": 0.0}
    fixed = Examples(config.model_copy(update=more | dropped), source, scheduler, scale_factor)

    def validate(step: int) -> dict[str, float]:
        with torch.no_grad():
            losses = [
                float(batch.losses("float32")["loss"])
                for k in range(config.validation_examples)
                for batch in fixed.batches(k, answer)[:1]
            ]
        return {"loss": sum(losses) / len(losses)}

    return validate


@dataclass(frozen=True)
class Examples:
    """Noisy latents to learn from: those of step n are drawn from (seed, n)."""

    config: DiffusionTraining
    source: LatentSource
    scheduler: NoiseScheduler
    scale_factor: float

    def batches(self, step: int, answer: Answer) -> list[MicroBatch]:
        """The examples of a step, one a batch."""
        draw, rng = step_generators(self.config.loop.seed, step)
        return [self._batch(draw, rng, answer) for _ in range(self.config.optimization.accumulate)]

    def _batch(self, draw: torch.Generator, rng: np.random.Generator, answer: Answer) -> MicroBatch:
        config, scheduler, device = self.config, self.scheduler, torch.device(self.config.device)
        example = self.source.draw(config.sizes[int(rng.integers(len(config.sizes)))], rng, draw)
        clean = (example.latent * self.scale_factor).to(device)
        noise = torch.randn(clean.shape, generator=draw).to(device)  # drawn on the CPU: one seed, one run on any device
        t = scheduler.sample_times(1, draw, clean[0, 0].numel())
        conditions = {name: tensor.to(device) for name, tensor in self._conditions(example, rng).items()}
        noisy = scheduler.add_noise(clean, noise, t).to(memory_format=torch.channels_last_3d)
        least_planes = min(clean.shape[2:]) // config.network.size_multiple

        def losses(precision: str) -> dict[str, Tensor]:
            with mixed_precision(precision, device, least_planes):
                prediction = answer(noisy, t.float().to(device), conditions, example)
            error = self.error(prediction.float() - scheduler.target(clean, noise, t))
            weights = loss_weights(example.labels.to(device), error.shape[2:], config.structure_weights)
            return {"loss": weighted_mean(error, weights)}

        return MicroBatch(losses, (example.name,))

    def error(self, difference: Tensor) -> Tensor:
        """What a difference counts, voxel by voxel."""
        if self.config.loss == "huber":
            zero = torch.zeros_like(difference)
            return F.huber_loss(difference, zero, reduction="none", delta=self.config.huber_delta)
        return difference.abs() if self.config.loss == "l1" else difference.square()

    def _conditions(self, example: LatentExample, rng: np.random.Generator) -> dict[str, Tensor]:
        """What the network is told, each of it dropped now and then: modality to 0, region and spacing to zeros."""
        config = self.config
        modality = UNKNOWN_MODALITY if rng.random() < config.drop_modality else example.modality
        given = condition_tensors(example.span, example.spacing, modality, config.network)
        for names, share in (
            (("top_region", "bottom_region"), config.drop_region),
            (("spacing",), config.drop_spacing),
        ):
            if share and rng.random() < share:
                given |= {name: torch.zeros_like(given[name]) for name in names if name in given}
        return given


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of (b, c, u, v, w) values with weights (u, v, w)."""
    return (values * weights).mean() / weights.mean()


def loss_weights(labels: Tensor, size: Sequence[int], structure_weights: Mapping[str, float]) -> Tensor:
    """How much each latent voxel (u, v, w) counts: as the weightiest structure in it or next to it, or 1.

    `labels` (x, y, z) are those of its volume. A thin bone is a small part of a crop, so that a plain mean hardly
    notices it; the neighbours count too, since a bone that is too thick is as wrong. Upstream weighs tumours so.
    """
    weights = torch.ones(tuple(labels.shape), device=labels.device)
    for name, weight in structure_weights.items():
        shown = torch.isin(labels, torch.tensor(load_vocabulary().members(name), device=labels.device))
        weights = torch.where(shown, weights.clamp(min=weight), weights)
    pooled = F.adaptive_max_pool3d(weights[None], tuple(size))
    return F.max_pool3d(pooled, kernel_size=3, stride=1, padding=1)[0]
