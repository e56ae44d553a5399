"""Training of the volume autoencoder by L1, KL, perceptual and adversarial losses (MAISI, 2409.11169, section 3.1)."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.compute.compute import Device
from maisi.data.dataset import PatchSource
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig, draw_latent
from maisi.networks.blocks import ResBlock
from maisi.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from maisi.shapes import Frozen, Size3
from maisi.training.haar import check_haar, start_at_haar
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
from maisi.training.losses import (
    FeatureNetwork,
    OrientedEdges,
    discriminator_loss,
    generator_loss,
    kl_divergence,
    perceptual_loss,
    squeezenet_features,
)


class AutoencoderTraining(Frozen):
    """Recipe of an autoencoder; weights of the losses are relative to L1 on [0, 1]."""

    network: AutoencoderConfig = AutoencoderConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loop: LoopConfig
    batch_size: int = Field(default=2, ge=1)
    patch: Size3 = (48, 48, 48)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=50, ge=0)
    average_decay: float = Field(default=0.995, ge=0, lt=1)
    start: Literal["plain", "haar"] = "plain"
    start_log_variance: float = -6.0  # latents start almost without noise: reconstruction first, the KL weighs in later
    kl_weight: float = Field(default=1e-4, ge=0)
    perceptual_weight: float = Field(default=0.0, ge=0)
    perceptual_slices: int = Field(default=6, ge=1)
    squeezenet: Path | None = None
    adversarial_weight: float = Field(default=0.0, ge=0)
    adversarial_start: int = Field(default=0, ge=0)
    decoder_only_after: int | None = None
    device: Device = "cpu"
    bfloat16: bool = True

    @model_validator(mode="after")
    def _can_start(self) -> "AutoencoderTraining":
        if self.start == "haar":
            check_haar(self.network)
        return self


def train_autoencoder(
    config: AutoencoderTraining,
    source: PatchSource,
    folder: Path,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    until: int | None = None,
) -> Autoencoder:
    """The averaged autoencoder after `config.loop.num_steps`, on `config.device`; resumes from `folder` after a stop.

    `decoder_only_after` freezes the encoder from that step on, so that latents made with it stay valid.
    """
    device = training_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.loop.seed)
        network = Autoencoder(config.network)
        _start_simple(network, config.start_log_variance)
        if config.start == "haar":
            start_at_haar(network)
        critic = _Critic(config) if config.adversarial_weight > 0 else None
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.named_parameters(), lr=config.learning_rate)
    state = TrainingState({"autoencoder": network, "average": average}, {"autoencoder": optimizer})
    if critic is not None:
        state.modules["discriminator"] = critic.network
        state.optimizers["discriminator"] = critic.optimizer
    features: FeatureNetwork = squeezenet_features(str(config.squeezenet)) if config.squeezenet else OrientedEdges()

    def take_step(step: int) -> dict[str, float]:
        draw, rng = step_generators(config.loop.seed, step)
        real = source.draw(config.batch_size, config.patch, rng).to(device)
        set_learning_rate(optimizer, config.learning_rate * warmed_cosine(step, config.loop.num_steps, config.warmup))
        if config.decoder_only_after is not None and step >= config.decoder_only_after:
            _freeze_encoder(network, average)
        fake, losses = _reconstruct(config, network, real, features, draw)
        total = losses["l1"] + config.kl_weight * losses["kl"] + config.perceptual_weight * losses["perceptual"]
        judge = critic if step >= config.adversarial_start else None
        if judge is not None:
            losses["generator"] = judge.score(fake)
            total = total + config.adversarial_weight * losses["generator"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if judge is not None:
            losses["discriminator"] = judge.learn(real, fake.detach())
        update_average(average, network, config.average_decay, step)
        return {name: round(float(value.detach()), 6) for name, value in losses.items()}

    fit(state, take_step, config.loop, folder, on_step, until)
    return average


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
    config: AutoencoderTraining, network: Autoencoder, real: Tensor, features: FeatureNetwork, draw: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    least_planes = min(real.shape[2:]) // config.network.factor
    with mixed_precision(config.bfloat16, real.device, least_planes):
        mean, log_variance = network.encode(real.to(memory_format=torch.channels_last_3d))
        fake = network.decode(draw_latent(mean, log_variance, draw)).float()
    losses = {"l1": (fake - real).abs().mean(), "kl": kl_divergence(mean.float(), log_variance.float())}
    if config.perceptual_weight > 0:
        losses["perceptual"] = perceptual_loss(features, fake, real, config.perceptual_slices, draw)
    else:
        losses["perceptual"] = fake.new_zeros(())
    return fake, losses


class _Critic:
    """The discriminator with an optimiser of its own: the generator's gradients never reach its weights."""

    def __init__(self, config: AutoencoderTraining) -> None:
        self.network = PatchDiscriminator(config.discriminator).to(training_device(config.device))
        rate = config.learning_rate * 0.3
        self.optimizer = torch.optim.Adam(self.network.named_parameters(), lr=rate, betas=(0.5, 0.9))
        self.bfloat16 = config.bfloat16

    def _logits(self, x: Tensor) -> Tensor:
        least_planes = min(x.shape[2:]) // 2**self.network.config.num_layers - 2  # the last two take one plane each
        with mixed_precision(self.bfloat16, x.device, least_planes):
            return self.network(x)[-1].float()

    def score(self, fake: Tensor) -> Tensor:
        self.network.requires_grad_(False)
        loss = generator_loss(self._logits(fake))
        self.network.requires_grad_(True)
        return loss

    def learn(self, real: Tensor, fake: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = discriminator_loss(self._logits(real), self._logits(fake))
        loss.backward()
        self.optimizer.step()
        return loss
