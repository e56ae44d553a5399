"""Training of the ControlNet on stored latents and their labels (MAISI, arXiv 2409.11169, section 3.3)."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.data.latents import LatentSource
from maisi.diffusion.denoiser import predict
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.controlnet import ControlNet, ControlNetConfig, around_hole, check_levels, with_occupancies
from maisi.networks.unet import BackboneConfig, DenoisingUNet, UNetConfig
from maisi.training.contrastive import ContrastiveConfig, differing, labels_without, region_contrast
from maisi.training.diffusion import Denoising, DiffusionTraining, TrainingBatch, plain
from maisi.training.holes import Inpainting, hole_of
from maisi.training.learner import TOTAL, Learner
from maisi.training.loop import OnStep, fit, training_device
from maisi.training.lora import add_adapters
from maisi.training.partial_labels import LabelDropout, thinned_out
from maisi.training.slabs import WHOLE, Slabs, gathered
from maisi.training.state import TrainingState
from maisi.training.validation import HeldOut, Steered


class ControlNetTraining(DiffusionTraining):
    """Recipe of a ControlNet. With `train_unet` the U-Net learns along, which small data and short runs need.

    `drop_labels` is the share of batches that see no label map: with `train_unet` the U-Net learns them alone, else the
    ControlNet is given a map that says nothing, an embedding of zeros. `thin_labels` leaves out the names of some
    structures. `occupancy` lists structures and groups whose fraction of every latent voxel the ControlNet sees. With
    `inpainting` it also sees the clean latent around holes, and learns to fill them.
    """

    controlnet: ControlNetConfig | None = None  # that of the bundle to start from, else as the U-Net
    train_unet: bool = False
    unet_rate: float = Field(default=1.0, gt=0)  # of the learning rate, for the U-Net
    drop_labels: float = Field(default=0.0, ge=0, lt=1)
    thin_labels: LabelDropout = LabelDropout()
    contrast: ContrastiveConfig | None = None
    occupancy: tuple[str, ...] = ()
    inpainting: Inpainting | None = None

    @model_validator(mode="after")
    def _adapters_or_a_unet(self) -> "ControlNetTraining":
        if self.lora is not None and self.train_unet:
            raise ValueError("lora is of the ControlNet alone, whose U-Net stays as it is; leave out train_unet")
        return self

    @model_validator(mode="after")
    def _alike_on_all_ranks(self) -> "ControlNetTraining":
        if self.optimization.sharded and (self.drop_labels or self.contrast is not None):
            raise ValueError(
                "sharded weights need every batch to use the same networks equally often; leave out drop_labels and "
                "contrast, or sharded"
            )
        return self

    @model_validator(mode="after")
    def _known_occupancies(self) -> "ControlNetTraining":
        for name in (*self.occupancy, *(self.inpainting.structures if self.inpainting is not None else ())):
            self.vocabulary.members(name)
        return self

    def seeing(self, config: ControlNetConfig) -> ControlNetConfig:
        """The configuration with all that is to be seen: occupancies by name, and what is around holes."""
        named = [id for name in self.occupancy for id in self.vocabulary.members(name)]
        ids = tuple(dict.fromkeys([*config.occupancy_ids, *named]))
        update = {"occupancy_ids": ids, "sees_surroundings": config.sees_surroundings or self.inpainting is not None}
        return ControlNetConfig.model_validate({**config.model_dump(), **update})


@dataclass(frozen=True)
class SteeredAnswers:
    """How a ControlNet and its U-Net answer the batches of a training, and what their answers cost."""

    config: ControlNetTraining
    task: Denoising
    unet: DenoisingUNet
    controlnet: ControlNet
    slabs: Slabs = WHOLE

    def losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The losses of a batch; `loss` is to be made small."""
        unlabelled = batch.rng.random() < self.config.drop_labels
        labels = None if unlabelled else self.labels(batch)
        held = self.surroundings(batch) if self.controlnet.config.sees_surroundings else None
        prediction = self.answer(batch, labels, held)
        losses = {TOTAL: self.task.loss(prediction, batch)}
        if self.config.contrast is not None and labels is not None:
            losses |= self.contrast(self.config.contrast, prediction, batch, labels, held)
            losses[TOTAL] = losses[TOTAL] + self.config.contrast.weight * losses["foreground"]
            losses[TOTAL] = losses[TOTAL] + self.config.contrast.weight * losses["background"]
        return losses

    def labels(self, batch: TrainingBatch) -> Tensor:
        """The ids (b, x, y, z) of a batch, some of them unnamed."""
        thinned = []
        for example in batch.examples:
            assert example.labels is not None, "sources of labelled latents give labels"
            thinned.append(thinned_out(example.labels, self.config.thin_labels, self.config.vocabulary, batch.rng))
        return torch.stack(thinned)

    def answer(self, batch: TrainingBatch, labels: Tensor | None, held: Tensor | None = None) -> Tensor:
        """The prediction for a batch under label maps (b, x, y, z), or without any, and what is held around holes."""
        x, t, conditions = self.slabs.split(batch.noisy), batch.t, batch.conditions
        if labels is None and self.config.train_unet:
            return gathered(predict(self.unet, None, x, t, conditions=conditions))[0]
        embedded = self.silence(batch) if labels is None else self.embedded(labels)
        if held is not None:
            embedded = embedded + gathered(self.controlnet.embed_surroundings(self.slabs.split(held)))[0]
        embedding = self.slabs.split(embedded)
        return gathered(predict(self.unet, self.controlnet, x, t, conditions=conditions, embedding=embedding))[0]

    def embedded(self, labels: Tensor) -> Tensor:
        """Label maps as the ControlNet sees them."""
        bits = label_bits(labels.to(self.task.device)).to(memory_format=torch.channels_last_3d)
        return gathered(self.controlnet.embed_condition(self.slabs.split(bits)))[0]

    def surroundings(self, batch: TrainingBatch) -> Tensor:
        """The clean latents around the holes of a batch (b, c + 1, u, v, w); without any to learn, all is one hole."""
        clean, config = batch.noised.clean, self.config
        u, v, w = clean.shape[2:]
        if config.inpainting is None:
            return around_hole(clean, torch.ones((1, u, v, w), device=clean.device))
        holes = []
        for example in batch.examples:
            assert example.labels is not None, "sources of labelled latents give labels"
            holes.append(hole_of(example.labels, (u, v, w), config.inpainting, config.vocabulary, batch.rng))
        return around_hole(clean, torch.stack(holes).to(clean.device))

    def silence(self, batch: TrainingBatch) -> Tensor:
        """An embedding that says nothing."""
        size = batch.noised.clean.shape[2:]
        return batch.noised.clean.new_zeros((len(batch.examples), self.controlnet.config.channels[0], *size))

    def contrast(
        self,
        config: ContrastiveConfig,
        prediction: Tensor,
        batch: TrainingBatch,
        labels: Tensor,
        held: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The two terms of the region-contrastive loss; a second answer is asked for only where there are lesions."""
        healthy = labels_without(labels, config.structures, self.config.vocabulary)
        size = batch.noised.clean.shape
        region = differing(labels, healthy, (size[2], size[3], size[4])).to(self.task.device)
        if not bool(region.any()):
            nothing = prediction.new_zeros((), dtype=torch.float32)
            return {"foreground": nothing, "background": nothing}
        without = self.answer(batch, healthy, held).float()
        return region_contrast(prediction.float(), without, batch.noised.target, region, config)._asdict()


def train_controlnet(
    config: ControlNetTraining,
    unet: DenoisingUNet,
    source: LatentSource,
    scheduler: NoiseScheduler,
    scale_factor: float,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    *,
    start: ControlNet | None = None,
    held_out: HeldOut | None = None,
) -> tuple[ControlNet, DenoisingUNet]:
    """The averaged ControlNet and its U-Net (the one given, unless `train_unet`), on `config.device`.

    It starts as `start`, or from the U-Net. Resumes from `folder` where a run was stopped; adapters end in its weights,
    and as `adapters.safetensors` in `folder`.
    """
    device = training_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        controlnet = starting_controlnet(config, unet, start)
        if config.lora is not None:
            add_adapters(controlnet, config.lora)
    controlnet = controlnet.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    unet = (copy.deepcopy(unet) if config.train_unet else unet).to(device).requires_grad_(config.train_unet)
    learning: dict[str, torch.nn.Module] = {"controlnet": controlnet, **({"unet": unet} if config.train_unet else {})}
    loop = config.counted(source)
    learner = Learner(learning, config.optimization, loop.steps, {"unet": config.unet_rate})
    state = TrainingState()
    learner.join(state)
    average = cast(ControlNet, learner.averages["controlnet"])
    average_unet = cast(DenoisingUNet, learner.averages.get("unet", unet))
    task = Denoising(config, unet.config, source, scheduler, scale_factor)
    steered = SteeredAnswers(config, task, unet, controlnet, learner.slabs)

    def take_step(step: int) -> dict[str, float]:
        return learner.update(step, task.batches(step, learner.parts, steered.losses))

    networks = Steered(average_unet, average)
    look = None if held_out is None else held_out.looks(networks, task.judged, loop.validate_every)
    fit(state, take_step, loop, folder, on_step, until, look)
    return plain(average, config.lora, folder), average_unet


def starting_controlnet(config: ControlNetTraining, unet: DenoisingUNet, start: ControlNet | None) -> ControlNet:
    """A ControlNet to train: a copy of `start`, which may see more than before, else one made from the U-Net.

    Raises `InvalidRequestError` where the recipe describes another than the one to start from, or one that does not fit
    the U-Net.
    """
    if start is None:
        return ControlNet.from_unet(unet, config.seeing(config.controlnet or controlnet_like(unet.config)))
    check_levels(unet.config, start.config)
    started = with_occupancies(start, config.seeing(config.controlnet or start.config))
    return copy.deepcopy(started).requires_grad_(True).train()


def controlnet_like(unet: UNetConfig, factor: int = 4) -> ControlNetConfig:
    """The configuration of a ControlNet with the levels of a U-Net, for label maps that are `factor` times larger."""
    widths = (8, 32, *[64] * max(0, factor.bit_length() - 2))[: factor.bit_length()]
    return ControlNetConfig(
        **{name: getattr(unet, name) for name in BackboneConfig.model_fields}, embedding_widths=widths
    )
