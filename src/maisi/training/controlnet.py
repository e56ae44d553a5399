"""Training of the ControlNet on stored latents and their labels (MAISI, arXiv 2409.11169, section 3.3)."""

import copy
from collections.abc import Callable, Mapping
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
from maisi.training.diffusion import DiffusionTraining, accumulate_loss
from maisi.training.loop import TrainingState, fit, set_learning_rate, training_device, update_average, warmed_cosine


class ControlNetTraining(DiffusionTraining):
    """Recipe of a ControlNet. With `train_unet` the U-Net learns along, which small data and short runs need."""

    controlnet: ControlNetConfig = ControlNetConfig()
    train_unet: bool = False
    unet_learning_rate: float = Field(default=1e-4, gt=0)
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
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    until: int | None = None,
) -> tuple[ControlNet, DenoisingUNet]:
    """The averaged ControlNet and its U-Net (the one given, unless `train_unet`), on `config.device`.

    Resumes from `folder` where a run was stopped.
    """
    device = training_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        controlnet = ControlNet.from_unet(unet, config.controlnet)
    controlnet = controlnet.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    unet = copy.deepcopy(unet).to(device).requires_grad_(config.train_unet)
    averages = {"controlnet": copy.deepcopy(controlnet), "unet": copy.deepcopy(unet)}
    optimizer = torch.optim.AdamW(controlnet.named_parameters(), lr=config.learning_rate, weight_decay=0.0)
    state = TrainingState(
        {"controlnet": controlnet, "average_controlnet": averages["controlnet"]}, {"controlnet": optimizer}
    )
    unet_optimizer = torch.optim.AdamW(unet.named_parameters(), lr=config.unet_learning_rate, weight_decay=0.0)
    if config.train_unet:
        state.modules |= {"unet": unet, "average_unet": averages["unet"]}
        state.optimizers |= {"unet": unet_optimizer}

    def answer(noisy: Tensor, t: Tensor, conditions: dict[str, Tensor], example: LatentExample) -> Tensor:
        if config.drop_labels and float(torch.rand((), generator=drop)) < config.drop_labels:
            return predict(unet, None, noisy, t, conditions=conditions)
        bits = label_bits(example.labels.to(device))[None].to(memory_format=torch.channels_last_3d)
        embedding = controlnet.embed_condition(bits)
        return predict(unet, controlnet, noisy, t, conditions=conditions, embedding=embedding)

    drop = torch.Generator()

    def take_step(step: int) -> dict[str, float]:
        drop.manual_seed(config.loop.seed * 1_000_003 + step)
        factor = warmed_cosine(step, config.loop.num_steps, config.warmup)
        set_learning_rate(optimizer, config.learning_rate * factor)
        set_learning_rate(unet_optimizer, config.unet_learning_rate * factor)
        for parameter in (*controlnet.parameters(), *unet.parameters()):
            parameter.grad = None
        loss = accumulate_loss(config, source, scheduler, scale_factor, step, answer)
        norm = torch.nn.utils.clip_grad_norm_([*controlnet.parameters(), *unet.parameters()], 1.0)
        optimizer.step()
        if config.train_unet:
            unet_optimizer.step()
            update_average(averages["unet"], unet, config.average_decay, step)
        update_average(averages["controlnet"], controlnet, config.average_decay, step)
        return {"loss": round(loss, 6), "grad_norm": round(float(norm), 4)}

    fit(state, take_step, config.loop, folder, on_step, until)
    return averages["controlnet"], averages["unet"]
