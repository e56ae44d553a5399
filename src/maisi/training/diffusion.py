"""Training of the denoising U-Net on stored latents (MAISI, arXiv 2409.11169, section 3.2)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.compute.compute import Device
from maisi.data.latents import LatentExample, LatentSource
from maisi.diffusion.denoiser import predict
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.conditioning import condition_tensors
from maisi.shapes import Frozen, Size3
from maisi.training.loop import (
    LoopConfig,
    TrainingState,
    fit,
    mixed_precision,
    set_learning_rate,
    step_generators,
    training_device,
    update_average,
    warmed_cosine,
)

UNKNOWN_MODALITY = 0


class DiffusionTraining(Frozen):
    """Recipe of a denoising U-Net; sizes are in latent voxels, one is drawn for every example."""

    network: UNetConfig = UNetConfig()
    loop: LoopConfig
    sizes: tuple[Size3, ...] = ((32, 32, 32),)
    examples_per_step: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=100, ge=0)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    loss: Literal["l1", "mse"] = "l1"
    structure_weights: dict[str, float] = Field(default_factory=dict)  # of structures or groups; all else counts 1
    drop_modality: float = Field(default=0.1, ge=0, le=1)
    device: Device = "cpu"
    bfloat16: bool = True

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
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    until: int | None = None,
) -> DenoisingUNet:
    """The averaged U-Net after `config.loop.num_steps`, on `config.device`; resumes from `folder` after a stop."""
    device = training_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        unet = DenoisingUNet(config.network)
    unet = unet.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = copy.deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.named_parameters(), lr=config.learning_rate, weight_decay=0.0)
    state = TrainingState({"unet": unet, "average": average}, {"unet": optimizer})

    def answer(noisy: Tensor, t: Tensor, conditions: dict[str, Tensor], example: LatentExample) -> Tensor:
        return predict(unet, None, noisy, t, conditions=conditions)

    def take_step(step: int) -> dict[str, float]:
        set_learning_rate(optimizer, config.learning_rate * warmed_cosine(step, config.loop.num_steps, config.warmup))
        optimizer.zero_grad(set_to_none=True)
        loss = accumulate_loss(config, source, scheduler, scale_factor, step, answer)
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        update_average(average, unet, config.average_decay, step)
        return {"loss": round(loss, 6), "grad_norm": round(float(norm), 4)}

    fit(state, take_step, config.loop, folder, on_step, until)
    return average


Answer = Callable[[Tensor, Tensor, dict[str, Tensor], LatentExample], Tensor]


def accumulate_loss(
    config: DiffusionTraining,
    source: LatentSource,
    scheduler: NoiseScheduler,
    scale_factor: float,
    step: int,
    answer: Answer,
) -> float:
    """The mean loss of one step's examples, its gradient added up in the parameters that `answer` uses."""
    draw, rng = step_generators(config.loop.seed, step)
    device = torch.device(config.device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for _ in range(config.examples_per_step):
        example = source.draw(config.sizes[int(rng.integers(len(config.sizes)))], rng, draw)
        clean = (example.latent * scale_factor).to(device)
        noise = torch.randn(clean.shape, generator=draw).to(device)  # drawn on the CPU: one seed, one run on any device
        t = scheduler.sample_times(1, draw, clean[0, 0].numel())
        modality = UNKNOWN_MODALITY if rng.random() < config.drop_modality else example.modality
        given = condition_tensors(example.span, example.spacing, modality, config.network)
        conditions = {name: tensor.to(device) for name, tensor in given.items()}
        noisy = scheduler.add_noise(clean, noise, t).to(memory_format=torch.channels_last_3d)
        least_planes = min(clean.shape[2:]) // config.network.size_multiple
        with mixed_precision(config.bfloat16, device, least_planes):
            prediction = answer(noisy, t.float().to(device), conditions, example)
        error = prediction.float() - scheduler.target(clean, noise, t)
        loss = error.abs() if config.loss == "l1" else error.square()
        weights = loss_weights(example.labels.to(device), error.shape[2:], config.structure_weights)
        loss = weighted_mean(loss, weights)
        (loss / config.examples_per_step).backward()
        total += loss.detach().double() / config.examples_per_step
    return float(total)


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
