"""Training of the denoising U-Net on stored latents (MAISI, arXiv 2409.11169, section 3.2)."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, cast

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
from maisi.training.denoising import ConditionDropout, Error, NoisyBatch, told, weighted_mean, weights_of
from maisi.training.distributed import Team
from maisi.training.learner import TOTAL, Learner, MicroBatch, mixed_precision
from maisi.training.loop import LoopConfig, OnStep, fit, step_generators, training_device
from maisi.training.lora import LoraConfig, add_adapters, merge_adapters, save_adapters
from maisi.training.new_classes import NewClass, vocabulary_with
from maisi.training.optimization import Optimization
from maisi.training.slabs import gathered
from maisi.training.state import TrainingState
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
    optimization: Optimization = Optimization()
    loss: Literal["l1", "l2", "huber"] = "l1"
    huber_delta: float = Field(default=1.0, gt=0)
    structure_weights: dict[str, float] = Field(default_factory=dict)  # of structures or groups; all else counts 1
    drop: ConditionDropout = ConditionDropout()
    validation: ValidationConfig = ValidationConfig()
    classes: dict[str, NewClass] = Field(default_factory=dict)  # by name; the vocabulary lacks them
    device: Device = "cpu"

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

    def counted(self, source: LatentSource) -> LoopConfig:
        """How long to train on that many cases, in steps."""
        return self.loop.counted(source.num_cases, self.batch_size * self.optimization.accumulate)

    @property
    def error(self) -> Error:
        """How a wrong prediction counts."""
        return Error(kind=self.loss, huber_delta=self.huber_delta)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary with the classes of the recipe."""
        return vocabulary_with(self.classes)


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of a training step: its examples, noisy, what is told of them, and the rest of the random numbers."""

    examples: tuple[LatentExample, ...]
    noised: NoisyBatch
    conditions: dict[str, Tensor]
    rng: np.random.Generator

    @property
    def noisy(self) -> Tensor:
        """The noisy latents, laid out for convolutions."""
        return self.noised.noisy.to(memory_format=torch.channels_last_3d)

    @property
    def t(self) -> Tensor:
        """The times as a network takes them."""
        return self.noised.t.float().to(self.noised.noisy.device)


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

    def batch(self, number: int) -> TrainingBatch:
        """Batch `number`: the same whenever it is asked for."""
        config = self.config
        examples = self.source.draw(config.loop.seed, number, config.batch_size, config.sizes)
        draw, rng = step_generators(config.loop.seed, number)
        batch = NoisyBatch.drawn(examples, self.scale_factor, self.scheduler, draw, self.device)
        conditions = told(examples, config.drop, self.unet, rng)
        return TrainingBatch(examples, batch, {name: value.to(self.device) for name, value in conditions.items()}, rng)

    def batches(
        self, step: int, parts: Iterable[int], losses: Callable[[TrainingBatch], Mapping[str, Tensor]]
    ) -> list[MicroBatch]:
        """Some parts of a step, with what they cost."""
        return [self._batch(step * self.config.optimization.accumulate + part, losses) for part in parts]

    def _batch(self, number: int, losses: Callable[[TrainingBatch], Mapping[str, Tensor]]) -> MicroBatch:
        config = self.config
        shape, cases = self.source.chosen(config.loop.seed, number, config.batch_size, config.sizes)

        def computed(precision: str) -> Mapping[str, Tensor]:
            with mixed_precision(precision, self.device, min(shape) // self.unet.size_multiple):
                return losses(self.batch(number))

        return MicroBatch(computed, cases)

    def precision(self, latent: Tensor) -> torch.autocast:
        """The number format of answers to latents of this size outside of a step."""
        least_planes = min(latent.shape[2:]) // self.unet.size_multiple
        return mixed_precision(self.config.optimization.precision, self.device, least_planes)

    @property
    def judged(self) -> Judged:
        """By what held-out cases are judged."""
        return Judged(self.unet, self.scheduler, self.scale_factor, self.config.error, self.device, self.precision)

    def loss(self, prediction: Tensor, batch: TrainingBatch) -> Tensor:
        """The mean error of a prediction, chosen structures weighing more."""
        error = self.config.error.of(prediction, batch.noised.target)
        weights = weights_of(
            batch.examples, error.shape[2:], self.config.structure_weights, self.config.vocabulary, self.device
        )
        return weighted_mean(error, weights)


def train_unet(
    config: DiffusionTraining,
    source: LatentSource,
    scheduler: NoiseScheduler,
    scale_factor: float,
    folder: Path,
    on_step: OnStep | None = None,
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
    loop = config.counted(source)
    learner = Learner({"unet": unet}, config.optimization, loop.steps)
    state = TrainingState()
    learner.join(state)
    average = cast(DenoisingUNet, learner.averages["unet"])
    task = Denoising(config, unet.config, source, scheduler, scale_factor)

    def losses(batch: TrainingBatch) -> dict[str, Tensor]:
        noisy = learner.slabs.split(batch.noisy)
        (prediction,) = gathered(predict(unet, None, noisy, batch.t, conditions=batch.conditions))
        return {TOTAL: task.loss(prediction, batch)}

    def take_step(step: int) -> dict[str, float]:
        return learner.update(step, task.batches(step, learner.parts, losses))

    look = None if held_out is None else held_out.looks(Steered(average), task.judged, loop.validate_every)
    fit(state, take_step, loop, folder, on_step, until, look)
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
        if Team.here().is_first:
            save_adapters(network, lora, folder / "adapters.safetensors")
        merge_adapters(network)
    return network
