"""Training of the ControlNet on stored latents and their labels (MAISI, arXiv 2409.11169, section 3.3)."""

import copy
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.data.latents import LatentExample, LatentSource
from maisi.diffusion.denoiser import predict
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet
from maisi.training.diffusion import Answer, DiffusionTraining, Examples, validation_of
from maisi.training.learner import Learner
from maisi.training.loop import OnStep, fit, training_device
from maisi.training.state import TrainingState


class ControlNetTraining(DiffusionTraining):
    """Recipe of a ControlNet. With `train_unet` the U-Net learns along, which small data and short runs need."""

    controlnet: ControlNetConfig = ControlNetConfig()
    train_unet: bool = False
    unet_rate: float = Field(default=1.0, gt=0)  # of the learning rate, for the U-Net
    drop_labels: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_learns(self) -> "ControlNetTraining":
        if self.drop_labels and not self.train_unet:
            raise ValueError("drop_labels needs train_unet: without labels only the U-Net could learn")
        return self


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
    validation: LatentSource | None = None,
    start: ControlNet | None = None,
) -> tuple[ControlNet, DenoisingUNet]:
    """The averaged ControlNet and its U-Net (the one given, unless `train_unet`), on `config.device`.

    Resumes from `folder` where a run was stopped. `start` gives weights to begin with in place of the U-Net's;
    `validation` is measured as for the U-Net.
    """
    device = training_device(config.device)
    loop = config.loop.counted(source.num_cases, config.optimization.accumulate)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        controlnet = ControlNet.from_unet(unet, config.controlnet) if start is None else copy.deepcopy(start)
    controlnet = controlnet.to(device, memory_format=torch.channels_last_3d).requires_grad_(True)  # type: ignore[call-overload]
    unet = copy.deepcopy(unet).to(device).requires_grad_(config.train_unet)
    networks = {"controlnet": controlnet} | ({"unet": unet} if config.train_unet else {})
    learner = Learner(networks, config.optimization, loop.steps, {"unet": config.unet_rate})
    state = TrainingState()
    learner.join(state)
    examples = Examples(config, source, scheduler, scale_factor)

    def take_step(step: int) -> dict[str, float]:
        answer = _answer(config, controlnet, unet, config.loop.seed * 1_000_003 + step)
        return learner.update(step, examples.batches(step, answer))

    averages = (learner.averages["controlnet"], learner.averages.get("unet", unet))
    average, average_unet = averages
    assert isinstance(average, ControlNet)
    assert isinstance(average_unet, DenoisingUNet)
    always = config.model_copy(update={"drop_labels": 0.0})
    validate = validation_of(config, validation, scheduler, scale_factor, _answer(always, average, average_unet, 0))
    fit(state, take_step, loop, folder, on_step, until, validate)
    return average, average_unet


def _answer(config: ControlNetTraining, controlnet: ControlNet, unet: DenoisingUNet, seed: int) -> Answer:
    """The prediction of both networks, without labels now and then: alike for the same example."""
    dropped: dict[int, bool] = {}
    drop = torch.Generator().manual_seed(seed)

    def answer(noisy: Tensor, t: Tensor, conditions: dict[str, Tensor], example: LatentExample) -> Tensor:
        if id(example) not in dropped:
            asked = config.drop_labels > 0
            dropped[id(example)] = asked and float(torch.rand((), generator=drop)) < config.drop_labels
        if dropped[id(example)]:
            return predict(unet, None, noisy, t, conditions=conditions)
        bits = label_bits(example.labels.to(noisy.device))[None].to(memory_format=torch.channels_last_3d)
        embedding = controlnet.embed_condition(bits)
        return predict(unet, controlnet, noisy, t, conditions=conditions, embedding=embedding)

    return answer
