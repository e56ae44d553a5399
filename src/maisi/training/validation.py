"""How well a denoising network does on held-out latents: the same noise and times at every look, and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.data.latents import FIRST_MR_CODE, LatentExample, LatentSource
from maisi.diffusion.denoiser import denoiser, predict
from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import NoiseScheduler
from maisi.networks.autoencoder import Autoencoder
from maisi.networks.controlnet import ControlNet, around_hole
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.codec import decode_tensor
from maisi.pipelines.preview import preview, write_png
from maisi.shapes import Frozen, Size3
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap
from maisi.training.denoising import ConditionDropout, Error, NoisyBatch, told
from maisi.training.distributed import Team

ALL_TOLD = ConditionDropout(modality=0.0, general_modality=0.0)
PICTURE_SEED = 20
SLICE_SIGMAS = 3.0  # a latent slice is shown from so many standard deviations below zero to as many above


class ValidationConfig(Frozen):
    """On how many cases, at how many times; a picture of a sample at every n-th look."""

    cases: int = Field(default=8, ge=1)
    times: int = Field(default=4, ge=1)
    picture_every: int = Field(default=0, ge=0)  # 0 draws none
    picture_steps: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class Steered:
    """A U-Net, and the ControlNet that steers it where there is one."""

    unet: DenoisingUNet
    controlnet: ControlNet | None = None

    def bits(self, example: LatentExample, device: torch.device) -> Tensor | None:
        """What the ControlNet sees of an example; None without a ControlNet."""
        if self.controlnet is None:
            return None
        assert example.labels is not None, "sources of labelled latents give labels"
        return label_bits(example.labels.to(device))[None].to(memory_format=torch.channels_last_3d)

    def embedding(self, example: LatentExample, device: torch.device) -> Tensor | None:
        """The same, embedded; for a ControlNet that sees the surroundings of a hole, everything is one."""
        bits = self.bits(example, device)
        if self.controlnet is None or bits is None:
            return None
        embedding = self.controlnet.embed_condition(bits)
        if not self.controlnet.config.sees_surroundings:
            return embedding
        clean = example.latent.to(device)
        return embedding + self.controlnet.embed_surroundings(around_hole(clean, torch.ones_like(clean[:, 0])))


@dataclass(frozen=True)
class Judged:
    """By what answers are judged: the schedule, the scale of latents, the error, and the precision of products."""

    unet: UNetConfig
    scheduler: NoiseScheduler
    scale_factor: float
    error: Error
    device: torch.device
    precision: Callable[[Tensor], torch.autocast]

    def conditions(self, example: LatentExample) -> dict[str, Tensor]:
        """All that is known of an example."""
        rows = told([example], ALL_TOLD, self.unet, np.random.default_rng(0))
        return {name: value.to(self.device) for name, value in rows.items()}


@dataclass(frozen=True)
class HeldOut:
    """Examples that nothing is learned from, and the folder of pictures; with an autoencoder these are of volumes."""

    config: ValidationConfig
    examples: tuple[LatentExample, ...]
    folder: Path
    autoencoder: Autoencoder | None = None

    @classmethod
    def of(
        cls,
        config: ValidationConfig,
        source: LatentSource,
        sizes: Sequence[Size3],
        folder: Path,
        autoencoder: Autoencoder | None = None,
    ) -> "HeldOut":
        """Examples of up to `config.cases` cases, the same whenever they are drawn; crops of the sizes in turn."""
        chosen = [[sizes[i % len(sizes)]] if sizes else [] for i in range(min(config.cases, len(source.latents)))]
        examples = tuple(source.draw(0, i, 1, size)[0] for i, size in enumerate(chosen))
        return cls(config, examples, folder, autoencoder)

    def looks(self, networks: Steered, judged: Judged, every: int) -> Callable[[int], dict[str, float]]:
        """What a training does every so many steps: it gives the losses; now and then it writes a picture too."""

        def look(step: int) -> dict[str, float]:
            wanted = self.config.picture_every and step // every % self.config.picture_every == 0
            if wanted and Team.here().is_first:
                self.draw(self.folder / f"step_{step:07d}.png", networks, judged)
            losses = validation_losses(self.examples, networks, judged, self.config.times)
            return {name: round(value, 6) for name, value in losses.items()}

        return look

    def draw(self, path: Path, networks: Steered, judged: Judged) -> None:
        """Write a picture of a sample under the conditions of the first example."""
        example = self.examples[0]
        latent = sampled(example, networks, judged, self.config.picture_steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.autoencoder is None:
            return write_png(latent_slices(latent), path)
        factor = self.autoencoder.factor
        x, y, z = (n * factor for n in latent.shape[2:])
        grid = Grid.centered((x, y, z), example.spacing)
        modality = "ct" if example.modality < FIRST_MR_CODE else "mr"
        volume = decode_tensor(self.autoencoder, latent / judged.scale_factor, grid, modality)  # type: ignore[arg-type]
        labels = None
        if networks.controlnet is not None and example.labels is not None:
            labels = LabelMap(example.labels.numpy(), grid)
        write_png(preview(volume, labels, path.stem), path)


def middle_times(scheduler: NoiseScheduler, count: int, num_voxels: int) -> list[float]:
    """The middles of `count` equal parts of the way from data to noise, in training steps, the cleanest first."""
    return scheduler.timesteps(2 * count, num_voxels)[1::2].flip(0).tolist()


@torch.no_grad()
def validation_losses(
    examples: Sequence[LatentExample], networks: Steered, judged: Judged, num_times: int
) -> dict[str, float]:
    """The plain mean error over all cases, and over those of each time: `loss`, `loss_t1` (cleanest) on.

    Noise depends on the place of a case among the examples and on the time alone.
    """
    sums = [0.0] * num_times
    for place, example in enumerate(examples):
        conditions, clean = judged.conditions(example), example.latent * judged.scale_factor
        with judged.precision(clean):
            embedding = networks.embedding(example, judged.device)
        for part, t in enumerate(middle_times(judged.scheduler, num_times, clean[0, 0].numel())):
            draw = torch.Generator().manual_seed(1000 * place + part)
            noise = torch.randn(clean.shape, generator=draw).to(judged.device)
            time = torch.tensor([t], dtype=torch.float64)
            batch = NoisyBatch.of(clean.to(judged.device), noise, time, judged.scheduler)
            with judged.precision(clean):
                found = predict(
                    networks.unet,
                    networks.controlnet,
                    batch.noisy.to(memory_format=torch.channels_last_3d),
                    time.float().to(judged.device),
                    conditions=conditions,
                    embedding=embedding,
                )
            sums[part] += float(judged.error.of(found, batch.target).mean()) / len(examples)
    by_time: Mapping[str, float] = {f"loss_t{part + 1}": value for part, value in enumerate(sums)}
    return {"loss": sum(sums) / num_times, **by_time}


@torch.no_grad()
def sampled(example: LatentExample, networks: Steered, judged: Judged, num_steps: int) -> Tensor:
    """A latent, times the scale factor, drawn under the conditions and labels of an example; on the CPU."""
    noise = torch.randn(example.latent.shape, generator=torch.Generator().manual_seed(PICTURE_SEED))
    with judged.precision(noise):
        denoise = denoiser(
            networks.unet,
            networks.controlnet,
            conditions=judged.conditions(example),
            embedding=networks.embedding(example, judged.device),
        )
        noise = noise.to(judged.device).contiguous(memory_format=torch.channels_last_3d)
        return sample(lambda x, t: denoise(x, t).float(), judged.scheduler, noise, num_steps).cpu()


def latent_slices(latent: Tensor) -> Image.Image:
    """The middle planes of the channels of a latent (1, c, u, v, w) side by side, in grey."""
    planes = latent[0, :, :, :, latent.shape[4] // 2]  # (c, u, v)
    row = torch.cat([plane.T.flip(0) for plane in planes], dim=1)
    grey = ((row / SLICE_SIGMAS + 1) * 127.5).clamp(0, 255)
    return Image.fromarray(grey.to(torch.uint8).numpy())
