"""How well a denoising network does on held-out latents: the same noise and times at every validation."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from maisi.data.latents import LatentExample, LatentSource
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.unet import UNetConfig
from maisi.shapes import Frozen, Size3
from maisi.training.denoising import ConditionDropout, ErrorKind, NoisyBatch, error_of, told

Predict: TypeAlias = Callable[[NoisyBatch, dict[str, Tensor], LatentExample], Tensor]
"""The prediction of a network for a noisy batch of one, its conditions, and the example it was made of."""

EVERYTHING = ConditionDropout(modality=0.0, general_modality=0.0)


class ValidationConfig(Frozen):
    """Every so many steps, on how many cases, at how many times; a picture of a sample at every n-th validation."""

    every: int = Field(default=500, ge=1)
    cases: int = Field(default=8, ge=1)
    times: int = Field(default=4, ge=1)
    picture_every: int = Field(default=0, ge=0)  # 0 draws none
    picture_steps: int = Field(default=8, ge=1)


def held_out(source: LatentSource, sizes: Sequence[Size3], count: int) -> tuple[LatentExample, ...]:
    """Up to `count` examples of different cases, the same whenever they are drawn; crops of the sizes in turn."""
    return tuple(
        source.draw(0, number, 1, [sizes[number % len(sizes)]] if sizes else [])[0]
        for number in range(min(count, len(source.latents)))
    )


def middle_times(scheduler: NoiseScheduler, count: int, num_voxels: int) -> list[float]:
    """The middles of `count` equal parts of the way from data to noise, in training steps, the cleanest first."""
    return scheduler.timesteps(2 * count, num_voxels)[1::2].flip(0).tolist()


@torch.no_grad()
def validation_losses(
    predict: Predict,
    examples: Sequence[LatentExample],
    scheduler: NoiseScheduler,
    scale_factor: float,
    unet: UNetConfig,
    config: ValidationConfig,
    kind: ErrorKind,
    device: torch.device,
) -> dict[str, float]:
    """The plain mean error over all cases, and over those of each time: `validation`, `validation_t1` (cleanest) on.

    Noise depends on the place of a case in `examples` and on the time alone.
    """
    sums = [0.0] * config.times
    for place, example in enumerate(examples):
        conditions = {
            name: value.to(device)
            for name, value in told([example], EVERYTHING, unet, np.random.default_rng(0)).items()
        }
        clean = example.latent * scale_factor
        for part, t in enumerate(middle_times(scheduler, config.times, clean[0, 0].numel())):
            draw = torch.Generator().manual_seed(1000 * place + part)
            noise = torch.randn(clean.shape, generator=draw)
            batch = NoisyBatch.of(clean.to(device), noise.to(device), torch.tensor([t], dtype=torch.float64), scheduler)
            error = error_of(predict(batch, conditions, example), batch.target, kind)
            sums[part] += float(error.mean()) / len(examples)
    by_time = {f"validation_t{part + 1}": value for part, value in enumerate(sums)}
    return {"validation": sum(sums) / config.times, **by_time}
