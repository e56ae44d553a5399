"""Training of the volume autoencoder by L1, KL, perceptual and adversarial losses (MAISI, 2409.11169, section 3.1)."""

import math
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.compute.compute import Device
from maisi.data.dataset import Patches, PatchSource
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig, draw_latent
from maisi.networks.blocks import ResBlock
from maisi.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from maisi.networks.trunks import OrientedEdges
from maisi.pipelines.preview import comparison, write_png
from maisi.shapes import Frozen, Size3
from maisi.space.grid import Grid
from maisi.space.intensity import from_unit
from maisi.space.similarity import psnr, ssim
from maisi.space.volume import Volume
from maisi.training.augment import Augmentation, augmented
from maisi.training.haar import check_haar, start_at_haar
from maisi.training.learner import Learner, MicroBatch, mixed_precision
from maisi.training.loop import LoopConfig, OnStep, fit, step_generators, training_device
from maisi.training.losses import (
    FeatureNetwork,
    discriminator_loss,
    generator_loss,
    kl_divergence,
    perceptual_loss,
    squeezenet_features,
)
from maisi.training.optimization import Optimization
from maisi.training.slabs import WHOLE, Slabs, gathered
from maisi.training.state import TrainingState
from maisi.training.steering import SteeredWeight, Steering

PICTURES = "pictures"
MOST_PSNR = 120.0  # dB; that of equal patches is infinite, which no curve shows


class AutoencoderTraining(Frozen):
    """Recipe of an autoencoder; weights of the losses are relative to L1 on [0, 1].

    The first `early_share` of the run takes patches of `early_patch`. With `steering` the weight of the KL term follows
    the spread of the latents from `kl_weight` on; else it stays.
    """

    network: AutoencoderConfig = AutoencoderConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loop: LoopConfig
    optimization: Optimization = Optimization(learning_rate=1e-3, warmup=50, average_decay=0.995)
    batch_size: int = Field(default=2, ge=1)
    patch: Size3 = (48, 48, 48)
    early_patch: Size3 | None = None
    early_share: float = Field(default=1 / 3, ge=0, le=1)
    augmentation: Augmentation = Augmentation()
    start_from: str | None = None  # a bundle whose autoencoder goes on learning
    start: Literal["plain", "haar"] = "plain"
    start_log_variance: float = -6.0  # latents start almost without noise: reconstruction first, the KL weighs in later
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(default=1e-4, ge=0)
    steering: Steering | None = None
    perceptual_weight: float = Field(default=0.0, ge=0)
    perceptual_slices: int = Field(default=6, ge=1)
    squeezenet: Path | None = None
    adversarial_weight: float = Field(default=0.0, ge=0)
    adversarial_start: int = Field(default=0, ge=0)
    decoder_only_after: int | None = None
    validation_patches: int = Field(default=8, ge=1)
    device: Device = "cpu"

    @model_validator(mode="after")
    def _can_start(self) -> "AutoencoderTraining":
        if self.start == "haar":
            check_haar(self.network)
        return self

    @model_validator(mode="after")
    def _whole_encoder(self) -> "AutoencoderTraining":
        if self.optimization.sharded and self.decoder_only_after is not None:
            raise ValueError("decoder_only_after takes weights that are whole; leave out sharded")
        return self

    def patch_at(self, step: int, num_steps: int) -> Size3:
        """The size of the patches of a step."""
        early = self.early_patch is not None and step < round(self.early_share * num_steps)
        return self.early_patch if early and self.early_patch is not None else self.patch


def check_autoencoder_training(config: AutoencoderTraining, num_cases: int, has_start: bool) -> None:
    """Nothing, or the refusal of a recipe that a step would refuse, be it the first or one long after.

    Raises `InvalidRequestError` for patches that the autoencoder cannot halve or its critic cannot judge, and for an
    encoder that would be frozen before it learned.
    """
    if config.decoder_only_after == 0 and not has_start:
        raise InvalidRequestError(
            "decoder_only_after 0 freezes an encoder that has learned nothing; accepted: a later step, or start_from a "
            "bundle with an autoencoder"
        )
    steps = config.loop.counted(num_cases, config.batch_size * config.optimization.accumulate).steps
    first_judged = config.adversarial_start if config.adversarial_weight > 0 else steps
    early = round(config.early_share * steps) if config.early_patch is not None else 0
    for name, size, is_judged in (
        ("early_patch", config.early_patch, first_judged < early),
        ("patch", config.patch, max(first_judged, early) < steps),
    ):
        if size is not None:
            _check_patch(name, size, config, is_judged)


def _check_patch(name: str, size: Size3, config: AutoencoderTraining, is_judged: bool) -> None:
    factor, least = config.network.factor, config.discriminator.min_size
    if any(n < 1 or n % factor for n in size):
        raise InvalidRequestError(f"{name} {size} is not of multiples of {factor}, which the autoencoder needs")
    if is_judged and min(size) < least:
        raise InvalidRequestError(
            f"{name} {size} is too small for the discriminator of {config.discriminator.num_layers} layers; accepted: "
            f"at least {least} an axis, fewer layers, or a later adversarial_start"
        )


def train_autoencoder(
    config: AutoencoderTraining,
    source: PatchSource,
    folder: Path,
    on_step: OnStep | None = None,
    until: int | None = None,
    *,
    validation: PatchSource | None = None,
    start: Autoencoder | None = None,
) -> Autoencoder:
    """The averaged autoencoder after the run, on `config.device`; resumes from `folder` after a stop.

    `start` gives weights to begin with, of the same network. Every `loop.validate_every` steps patches of `validation`
    are reconstructed, the same ones each time, and shown in `pictures/`. `decoder_only_after` freezes the encoder from
    that step on, so that latents made with it stay valid.
    """
    check_autoencoder_training(config, source.num_cases, start is not None)
    training = _AutoencoderTraining(config, source, start)
    validate = partial(training.validate, validation, folder) if validation is not None else None
    fit(training.state, training.step, training.loop, folder, on_step, until, validate, training.cost)
    return training.average


class _AutoencoderTraining:
    """A run: the autoencoder, its critic where there is one, and the weight of the KL term."""

    def __init__(self, config: AutoencoderTraining, source: PatchSource, start: Autoencoder | None) -> None:
        self.config, self.source = config, source
        accumulate = config.optimization.accumulate
        self.loop = config.loop.counted(source.num_cases, config.batch_size * accumulate)
        self.device = training_device(config.device)
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            self.network = _started(config, start).to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            self.critic = PatchDiscriminator(config.discriminator) if config.adversarial_weight > 0 else None
        self.learner = Learner({"autoencoder": self.network}, config.optimization, self.loop.steps)
        self.weight = SteeredWeight(config.kl_weight, config.steering)
        self.state = TrainingState(keepers={"kl": self.weight})
        self.learner.join(self.state)
        if self.critic is not None:
            slower = config.optimization.learning_rate * 0.3
            settings = config.optimization.model_copy(
                update={"learning_rate": slower, "betas": (0.5, 0.9), "sharded": False, "slabs": 1}
            )
            networks = {"discriminator": self.critic.to(self.device)}
            alone = config.optimization.slabs > 1  # every process has the whole volumes that it judges
            self.judge = Learner(networks, settings, self.loop.steps, averaged=False, alone=alone)
            self.judge.join(self.state)
        self.features: FeatureNetwork = (
            squeezenet_features(str(config.squeezenet)) if config.squeezenet else OrientedEdges()
        )

    @property
    def average(self) -> Autoencoder:
        """The moving average of the autoencoder."""
        network = self.learner.averages["autoencoder"]
        assert isinstance(network, Autoencoder)
        return network

    def step(self, step: int) -> dict[str, float]:
        """One step of the autoencoder and, after it, one of the critic, whose gradients are its own."""
        config = self.config
        if config.decoder_only_after is not None and step >= config.decoder_only_after:
            _freeze_encoder(self.network, self.average)
        judged = self.critic is not None and step >= config.adversarial_start
        fakes: dict[int, Tensor] = {}
        batches = [self._batch(step, k, judged, fakes) for k in self.learner.parts]
        losses = self.learner.update(step, batches)
        if "latent_std" in losses:
            self.weight.follow(losses["latent_std"])
            losses["kl_weight"] = self.weight.weight
        if judged and "skipped" not in losses:
            judging = [self._judged_batch(step, k, fakes[k]) for k in self.judge.parts]
            losses["discriminator"] = self.judge.update(step, judging).get("loss", 0.0)
        return losses

    def cost(self, step: int) -> float:
        """How many voxels a patch of a step has."""
        return float(math.prod(self.config.patch_at(step, self.loop.steps)))

    def _patches(self, step: int, part: int) -> tuple[Patches, torch.Generator]:
        draw, rng = step_generators(self.config.loop.seed, step * self.config.optimization.accumulate + part)
        change = None if self.config.augmentation.is_none else partial(_changed, self.config.augmentation)
        size = self.config.patch_at(step, self.loop.steps)
        return self.source.draw(self.config.batch_size, size, rng, change), draw

    def _batch(self, step: int, part: int, judged: bool, fakes: dict[int, Tensor]) -> MicroBatch:
        patches, draw = self._patches(step, part)
        begin, config = draw.get_state(), self.config

        def losses(precision: str) -> dict[str, Tensor]:
            draw.set_state(begin)
            real = patches.images.to(self.device)
            fake, told = _reconstruct(config, self.network, real, self.features, draw, precision, self.learner.slabs)
            total = told["reconstruction"] + self.weight.weight * told["kl"]
            total = total + config.perceptual_weight * told.get("perceptual", 0.0)
            if judged:
                told["generator"] = self._score(fake, precision)
                total = total + config.adversarial_weight * told["generator"]
                fakes[part] = fake.detach()
            return {"loss": total, **told}

        return MicroBatch(losses, patches.cases)

    def _judged_batch(self, step: int, part: int, fake: Tensor) -> MicroBatch:
        patches, _ = self._patches(step, part)

        def losses(precision: str) -> dict[str, Tensor]:
            real = patches.images.to(self.device)
            return {"loss": discriminator_loss(self._logits(real, precision), self._logits(fake, precision))}

        return MicroBatch(losses, patches.cases)

    def _logits(self, x: Tensor, precision: str) -> Tensor:
        assert self.critic is not None
        least_planes = min(x.shape[2:]) // 2**self.critic.config.num_layers - 2  # the last two take one plane each
        with mixed_precision(precision, x.device, least_planes):
            return self.critic(x)[-1].float()

    def _score(self, fake: Tensor, precision: str) -> Tensor:
        """What the critic thinks; its weights take no gradient from it."""
        assert self.critic is not None
        self.critic.requires_grad_(False)
        try:
            return generator_loss(self._logits(fake, precision))
        finally:
            self.critic.requires_grad_(True)

    @torch.no_grad()
    def validate(self, source: PatchSource, folder: Path, step: int) -> dict[str, float]:
        """Reconstruction of fixed patches by the averaged autoencoder, clipped to [0, 1]: means over the patches.

        L1, PSNR (dB) and SSIM with a data range of 1, and the spread of the latents. The patch of the greatest contrast
        is shown.
        """
        network, slabs, found = self.average, self.learner.slabs, []
        shown: tuple[Tensor, Tensor] | None = None
        for k in range(self.config.validation_patches):
            draw, rng = step_generators(self.config.loop.seed + 1, k)
            real = source.draw(1, self.config.patch, rng).images.to(self.device)
            mean, log_variance = gathered(*network.encode(slabs.split(real)))
            fake = gathered(network.decode(slabs.split(mean)))[0].clamp(0, 1)
            spread = float(draw_latent(mean, log_variance, draw).std())
            found.append({**_agreement(fake, real), "latent_std": spread})
            if shown is None or real.std() > shown[0].std():  # not a patch of plain air
                shown = real, fake
        if shown is not None and self.learner.team.is_first:
            real, fake = shown
            picture = folder / PICTURES / f"step_{step:06d}.png"
            picture.parent.mkdir(exist_ok=True)
            write_png(comparison(_volume(real), _volume(fake), f"step {step}"), picture)
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _changed(
    config: Augmentation, patch: np.ndarray, modality: Literal["ct", "mr"], rng: np.random.Generator
) -> np.ndarray:
    return augmented(patch, modality, config, rng)


def _agreement(fake: Tensor, real: Tensor) -> dict[str, float]:
    """L1, PSNR (dB, at most that of a mean squared error of 1e-12) and SSIM of a patch (1, 1, x, y, z) in [0, 1]."""
    a, b = fake[0, 0].double().cpu().numpy(), real[0, 0].double().cpu().numpy()
    return {"loss": float(np.abs(a - b).mean()), "psnr_db": min(psnr(a, b, 1.0), MOST_PSNR), "ssim": ssim(a, b, 1.0)}


def _volume(unit: Tensor) -> Volume:
    array = from_unit(unit[0, 0].cpu().numpy())
    return Volume(array, Grid.centered(array.shape, (1.0, 1.0, 1.0)))


def _started(config: AutoencoderTraining, start: Autoencoder | None) -> Autoencoder:
    """The network as a run begins."""
    network = Autoencoder(config.network)
    if start is not None:
        if start.config != config.network:
            raise InvalidRequestError("the bundle's autoencoder is of another network than the recipe's")
        network.load_state_dict(start.state_dict())
        return network
    _start_simple(network, config.start_log_variance)
    if config.start == "haar":
        start_at_haar(network)
    return network


def _start_simple(network: Autoencoder, log_variance: float) -> None:
    """Nearly noiseless latents, and residual blocks that pass their input on: the linear path is learned first."""
    torch.nn.init.constant_(network.to_log_variance.bias, log_variance)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.zeros_(module.conv2.weight)
            torch.nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]


def _freeze_encoder(network: Autoencoder, average: Autoencoder) -> None:
    """Train on with the averaged encoder, unchanged: `average` then no longer moves either."""
    for name in ("encoder", "to_mean", "to_log_variance"):
        part = getattr(network, name)
        part.load_state_dict(getattr(average, name).state_dict())
        part.requires_grad_(False)


def _reconstruct(
    config: AutoencoderTraining,
    network: Autoencoder,
    real: Tensor,
    features: FeatureNetwork,
    draw: torch.Generator,
    precision: str,
    slabs: Slabs = WHOLE,
) -> tuple[Tensor, dict[str, Tensor]]:
    least_planes = min(real.shape[2:]) // config.network.factor
    with mixed_precision(precision, real.device, least_planes):
        mean, log_variance = gathered(*network.encode(slabs.split(real.to(memory_format=torch.channels_last_3d))))
        latent = draw_latent(mean, log_variance, draw)
        fake = gathered(network.decode(slabs.split(latent)))[0]
        fake = fake.float() if precision != "float32" else fake
    error = (fake - real).abs() if config.reconstruction == "l1" else (fake - real).square()
    losses = {
        "reconstruction": error.mean(),
        "kl": kl_divergence(mean.float(), log_variance.float()),
        "latent_std": latent.detach().float().std(),
    }
    if config.perceptual_weight > 0:
        losses["perceptual"] = perceptual_loss(features, fake, real, config.perceptual_slices, draw)
    return fake, losses
