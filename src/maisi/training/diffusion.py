"""Training of the denoising U-Net on stored latents (MAISI, arXiv 2409.11169, section 3.2)."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.vocabulary import Vocabulary
from maisi.compute.compute import Device
from maisi.data.latents import LatentExample, LatentSource
from maisi.diffusion.denoiser import predict
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.errors import InvalidRequestError
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.shapes import Frozen, Size3
from maisi.training.denoising import ConditionDropout, ErrorKind, NoisyBatch, error_of, told, weighted_mean, weights_of
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
from maisi.training.lora import LoraConfig, add_adapters, merge_adapters, save_adapters
from maisi.training.new_classes import NewClass, vocabulary_with
from maisi.training.validation import HeldOut, Judged, Steered, ValidationConfig

T = TypeVar("T", bound=torch.nn.Module)


class DiffusionTraining(Frozen):
    """Recipe of a denoising U-Net; `sizes` of crops are in latent voxels, without any none is cut."""

    network: UNetConfig | None = None  # that of the bundle to start from, else the released one's
    start_from: str | None = None  # bundle whose weights go on learning: packaged name or folder
    lora: LoraConfig | None = None  # what learns beside the weights of that bundle; without, all of them do
    loop: LoopConfig
    sizes: tuple[Size3, ...] = ((32, 32, 32),)
    batch_size: int = Field(default=1, ge=1)
    examples_per_step: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=100, ge=0)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    loss: ErrorKind = "l1"
    structure_weights: dict[str, float] = Field(default_factory=dict)  # of structures or groups; all else counts 1
    drop: ConditionDropout = ConditionDropout()
    validation: ValidationConfig = ValidationConfig()
    classes: dict[str, NewClass] = Field(default_factory=dict)  # by name; the vocabulary lacks them
    device: Device = "cpu"
    bfloat16: bool = True

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> "DiffusionTraining":
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora needs start_from: adapters learn beside weights that there are")
        return self

    @model_validator(mode="after")
    def _known_structures(self) -> "DiffusionTraining":
        for name, weight in self.structure_weights.items():
            self.vocabulary.members(name)
            if weight < 1:
                raise ValueError(f"the weight of {name} must be at least 1, what all else counts; got {weight}")
        return self

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary with the classes of the recipe."""
        return vocabulary_with(self.classes)


@dataclass(frozen=True)
class Lesson:
    """A batch of a training step: its examples, noisy, what is told of them, and the rest of the random numbers."""

    examples: tuple[LatentExample, ...]
    batch: NoisyBatch
    conditions: dict[str, Tensor]
    rng: np.random.Generator

    @property
    def noisy(self) -> Tensor:
        """The noisy latents, laid out for convolutions."""
        return self.batch.noisy.to(memory_format=torch.channels_last_3d)

    @property
    def t(self) -> Tensor:
        """The times as a network takes them."""
        return self.batch.t.float().to(self.batch.noisy.device)


@dataclass(frozen=True)
class Denoising:
    """Where the batches of a training come from, and how answers to them are judged."""

    config: DiffusionTraining
    unet: UNetConfig
    source: LatentSource
    scheduler: NoiseScheduler
    scale_factor: float

    @property
    def device(self) -> torch.device:
        return training_device(self.config.device)

    def lesson(self, number: int) -> Lesson:
        """Batch `number`: the same whenever it is asked for."""
        config = self.config
        examples = self.source.draw(config.loop.seed, number, config.batch_size, config.sizes)
        draw, rng = step_generators(config.loop.seed, number)
        batch = NoisyBatch.drawn(examples, self.scale_factor, self.scheduler, draw, self.device)
        conditions = told(examples, config.drop, self.unet, rng)
        return Lesson(examples, batch, {name: value.to(self.device) for name, value in conditions.items()}, rng)

    def precision(self, latent: Tensor) -> torch.autocast:
        """Products in bfloat16 where the recipe says so and all feature maps are large enough for it."""
        least_planes = min(latent.shape[2:]) // self.unet.size_multiple
        return mixed_precision(self.config.bfloat16, self.device, least_planes)

    def loss(self, prediction: Tensor, lesson: Lesson) -> Tensor:
        """The mean error of a prediction, chosen structures weighing more."""
        error = error_of(prediction, lesson.batch.target, self.config.loss)
        weights = weights_of(
            lesson.examples, error.shape[2:], self.config.structure_weights, self.config.vocabulary, self.device
        )
        return weighted_mean(error, weights)

    def looked_at(self, held_out: HeldOut | None, step: int, networks: Steered) -> dict[str, float]:
        """What validation finds after `step`, nothing where it is not due."""
        if held_out is None or (step + 1) % self.config.validation.every:
            return {}
        judged = Judged(self.unet, self.scheduler, self.scale_factor, self.config.loss, self.device, self.precision)
        return held_out.look(step + 1, networks, judged)


def train_unet(
    config: DiffusionTraining,
    source: LatentSource,
    scheduler: NoiseScheduler,
    scale_factor: float,
    folder: Path,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    until: int | None = None,
    *,
    start: DenoisingUNet | None = None,
    held_out: HeldOut | None = None,
) -> DenoisingUNet:
    """The averaged U-Net after `config.loop.num_steps`, on `config.device`; resumes from `folder` after a stop.

    It starts as `start`, or fresh; adapters end in its weights, and as `adapters.safetensors` in `folder`.
    """
    device = training_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        unet = starting_unet(config.network, start)
        if config.lora is not None:
            add_adapters(unet, config.lora)
    unet = unet.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = copy.deepcopy(unet)
    learned = [(name, parameter) for name, parameter in unet.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=0.0)
    state = TrainingState({"unet": unet, "average": average}, {"unet": optimizer})
    task = Denoising(config, unet.config, source, scheduler, scale_factor)

    def losses(number: int) -> dict[str, Tensor]:
        lesson = task.lesson(number)
        with task.precision(lesson.batch.clean):
            prediction = predict(unet, None, lesson.noisy, lesson.t, conditions=lesson.conditions)
        return {"total": task.loss(prediction, lesson)}

    def take_step(step: int) -> dict[str, float]:
        set_learning_rate(optimizer, config.learning_rate * warmed_cosine(step, config.loop.num_steps, config.warmup))
        optimizer.zero_grad(set_to_none=True)
        found = accumulated(losses, step, config.examples_per_step)
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in learned], 1.0)
        optimizer.step()
        update_average(average, unet, config.average_decay, step)
        return {**found, "grad_norm": round(float(norm), 4), **task.looked_at(held_out, step, Steered(average))}

    fit(state, take_step, config.loop, folder, on_step, until)
    return plain(average, config.lora, folder)


def starting_unet(config: UNetConfig | None, start: DenoisingUNet | None) -> DenoisingUNet:
    """A U-Net to train: a copy of `start`, else a fresh one of torch's generator.

    Raises `InvalidRequestError` where the recipe describes another than the one to start from.
    """
    if start is None:
        return DenoisingUNet(config or UNetConfig())
    check_unet(config, start.config)
    return copy.deepcopy(start).requires_grad_(True).train()


def check_unet(config: UNetConfig | None, start: UNetConfig) -> None:
    """Raise `InvalidRequestError` where a recipe describes another U-Net than the one to start from."""
    for name in UNetConfig.model_fields if config is not None else ():
        ours, theirs = getattr(config, name), getattr(start, name)
        if ours != theirs:
            raise InvalidRequestError(f"{name} of the U-Net to start from is {theirs}; the recipe says {ours}")


def plain(network: T, lora: LoraConfig | None, folder: Path) -> T:
    """The network with its adapters in its weights, after they were saved in `folder`; without adapters as it is."""
    if lora is not None:
        save_adapters(network, lora, folder / "adapters.safetensors")
        merge_adapters(network)
    return network


def accumulated(losses: Callable[[int], Mapping[str, Tensor]], step: int, count: int) -> dict[str, float]:
    """The mean losses of the batches of a step, the gradient of their total added up in the parameters behind them."""
    sums: dict[str, float] = {}
    for number in range(step * count, (step + 1) * count):
        found = losses(number)
        (found["total"] / count).backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / count
    return {"loss": round(sums.pop("total"), 6), **{name: round(value, 6) for name, value in sums.items()}}
