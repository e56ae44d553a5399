"""The volume autoencoder: a VAE whose latent is a few times smaller than the volume on every axis.

MAISI, arXiv 2409.11169, section 3.1. With the default configuration it equals the released CT autoencoder; with
`upsampling="transposed"` and 8 -> 125 channels it equals the released label autoencoder.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from maisi.errors import InvalidGridError
from maisi.networks.blocks import Downsample, GroupNorm, ResBlock, TransposedUpsample, TrilinearUpsample, conv1, conv3
from maisi.shapes import Frozen, LatentBatch, VoxelBatch


class AutoencoderConfig(Frozen):
    """Shape of an `Autoencoder`; the defaults are the released CT autoencoder."""

    in_channels: int = Field(default=1, ge=1)
    out_channels: int = Field(default=1, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    channels: tuple[int, ...] = (64, 128, 256)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    norm_groups: int = Field(default=32, ge=1)
    norm_eps: float = 1e-6
    upsampling: Literal["trilinear", "transposed"] = "trilinear"

    @model_validator(mode="after")
    def _levels_agree(self) -> "AutoencoderConfig":
        if not self.channels or len(self.channels) != len(self.num_res_blocks):
            raise ValueError(
                f"channels and num_res_blocks need one entry a level: got {self.channels} and {self.num_res_blocks}"
            )
        uneven = [c for c in self.channels if c % self.norm_groups]
        if uneven:
            raise ValueError(f"channels {uneven} are not divisible by norm_groups {self.norm_groups}")
        return self

    @property
    def factor(self) -> int:
        """How many times smaller the latent is on every axis."""
        return 2 ** (len(self.channels) - 1)


class Encoder(nn.Module):
    """Volume (b, in_channels, x, y, z) -> features (b, latent_channels, u, v, w), u = x / factor.

    As released there is no activation before the last convolution.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, eps = config.norm_groups, config.norm_eps
        self.conv_in = conv3(config.in_channels, config.channels[0])
        self.blocks = nn.ModuleList()
        width = config.channels[0]
        for level, (channels, repeats) in enumerate(zip(config.channels, config.num_res_blocks, strict=True)):
            for _ in range(repeats):
                self.blocks.append(ResBlock(width, channels, groups, eps))
                width = channels
            if level < len(config.channels) - 1:
                self.blocks.append(Downsample(width))
        self.norm_out = GroupNorm(groups, width, eps=eps)
        self.conv_out = conv3(width, config.latent_channels)

    def forward(self, x: VoxelBatch) -> LatentBatch:
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h)
        return self.conv_out(self.norm_out(h))


class Decoder(nn.Module):
    """Latent (b, latent_channels, u, v, w) -> volume (b, out_channels, x, y, z), x = factor u.

    As released there is no activation before the last convolution, and none after it.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, eps = config.norm_groups, config.norm_eps
        upsample = TrilinearUpsample if config.upsampling == "trilinear" else TransposedUpsample
        channels_up, repeats_up = config.channels[::-1], config.num_res_blocks[::-1]
        self.conv_in = conv3(config.latent_channels, channels_up[0])
        self.blocks = nn.ModuleList()
        width = channels_up[0]
        for level, (channels, repeats) in enumerate(zip(channels_up, repeats_up, strict=True)):
            for _ in range(repeats):
                self.blocks.append(ResBlock(width, channels, groups, eps))
                width = channels
            if level < len(channels_up) - 1:
                self.blocks.append(upsample(width))
        self.norm_out = GroupNorm(groups, width, eps=eps)
        self.conv_out = conv3(width, config.out_channels)

    def features(self, latent: LatentBatch) -> VoxelBatch:
        """What the last convolution reads, (b, channels[0], x, y, z)."""
        h = self.conv_in(latent)
        for block in self.blocks:
            h = block(h)
        return self.norm_out(h)

    def forward(self, latent: LatentBatch) -> VoxelBatch:
        return self.conv_out(self.features(latent))


class Autoencoder(nn.Module):
    """VAE between volumes (b, in_channels, x, y, z) and latents (b, latent_channels, u, v, w), u = x / factor.

    A CT comes in [0, 1] (see `space.intensity`), labels as the bits of their ids. Kingma and Welling, arXiv 1312.6114.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to_mean = conv1(config.latent_channels, config.latent_channels)
        self.to_log_variance = conv1(config.latent_channels, config.latent_channels)
        self.from_latent = conv1(config.latent_channels, config.latent_channels)

    @property
    def factor(self) -> int:
        """How many times smaller the latent is on every axis."""
        return self.config.factor

    def encode(self, x: VoxelBatch) -> tuple[LatentBatch, LatentBatch]:
        """Mean and log-variance (b, latent_channels, u, v, w) of the latent, the log-variance clamped to [-30, 20].

        Raises `InvalidGridError` for a size that is not a multiple of the factor, which the strides would crop.
        """
        self._check_size(x)
        h = self.encoder(x)
        return self.to_mean(h), torch.clamp(self.to_log_variance(h), -30.0, 20.0)

    def decode(self, latent: LatentBatch) -> VoxelBatch:
        """The volume (b, out_channels, x, y, z) of an unscaled latent: intensities, not clipped, or logits."""
        return self.decoder(self.from_latent(latent))

    def decode_features(self, latent: LatentBatch) -> VoxelBatch:
        """`decode` without its last convolution, for logits that are too many to be there at once."""
        return self.decoder.features(self.from_latent(latent))

    def _check_size(self, x: VoxelBatch) -> None:
        size = tuple(x.shape[2:])
        if any(n % self.factor or n < self.factor for n in size):
            low = tuple(max(self.factor, n // self.factor * self.factor) for n in size)
            high = tuple(-(-n // self.factor) * self.factor for n in size)
            raise InvalidGridError(f"size {size} is not a multiple of {self.factor}; nearest: {low} or {high}")


def draw_latent(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A sample of the posterior, mean + exp(log_variance / 2) * noise, of the shape and on the device of the mean.

    Kingma and Welling, arXiv 1312.6114, equation 10. The noise is drawn on the CPU: one seed, one latent on any device.
    """
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
    return mean + (0.5 * log_variance).exp() * noise.to(mean)
