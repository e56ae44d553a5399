"""The denoising U-Net: predicts noise or velocity of a latent, given the time and what is known of the scan.

MAISI, arXiv 2409.11169, section 3.2. Body region and voxel spacing are embedded and joined to the time embedding, the
modality is added to it, a `ControlNet` adds residuals to the skip connections, and the label generator attends to a
context of organ sizes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.networks.attention import ContextAttention, SelfAttention
from maisi.networks.blocks import GroupNorm, conv1, conv3
from maisi.shapes import (
    ContextBatch,
    Frozen,
    LatentBatch,
    ModalityBatch,
    PredictionBatch,
    RegionBatch,
    SpacingBatch,
    Times,
)

NUM_REGIONS = 4  # one-hot over head and neck, chest, abdomen, lower body


class Residuals(NamedTuple):
    """What a `ControlNet` adds to a `DenoisingUNet`: one tensor a skip connection, in their order, and the middle's.

    Each has the shape of what it is added to: (b, skip_channels[i], ...) at the resolution of its level.
    """

    skips: tuple[Tensor, ...]
    middle: Tensor


class BackboneConfig(Frozen):
    """The half that a U-Net and its ControlNet share: levels going down, and the middle."""

    in_channels: int = Field(default=4, ge=1)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_levels: tuple[bool, ...] = (False, False, True, True)  # the middle always has attention
    head_channels: int = Field(default=32, ge=1)
    attention_projection: bool = True  # a linear layer after the heads are joined
    resblock_updown: bool = False  # change resolution by residual blocks instead of convolutions
    norm_groups: int = Field(default=32, ge=1)
    norm_eps: float = Field(default=1e-6, gt=0)
    num_modalities: int | None = Field(default=None, ge=1)
    context_channels: int | None = Field(default=None, ge=1)  # attend to a context of this width

    @model_validator(mode="after")
    def _levels_agree(self) -> "BackboneConfig":
        if not self.channels or not len(self.channels) == len(self.num_res_blocks) == len(self.attention_levels):
            raise ValueError(
                "channels, num_res_blocks and attention_levels need one entry a level: "
                f"got {self.channels}, {self.num_res_blocks} and {self.attention_levels}"
            )
        if min(self.num_res_blocks) < 1:
            raise ValueError(f"num_res_blocks {self.num_res_blocks} has a level without a block; at least 1 is needed")
        uneven = [c for c in self.channels if c < 1 or c % self.norm_groups]
        if uneven:
            raise ValueError(f"channels {uneven} are not divisible by norm_groups {self.norm_groups}")
        if self.channels[0] % 2:
            raise ValueError(f"channels[0] is {self.channels[0]}; the time embedding (half sines) needs an even number")
        attending = {c for c, attention in zip(self.channels, self.attention_levels, strict=True) if attention}
        headless = sorted(c for c in attending | {self.channels[-1]} if c % self.head_channels)
        if headless:
            raise ValueError(f"attention channels {headless} are not divisible by head_channels {self.head_channels}")
        return self

    @property
    def size_multiple(self) -> int:
        """Every axis of a latent must be a multiple of this."""
        return 2 ** (len(self.channels) - 1)

    @property
    def time_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels[0]

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding that every residual block sees."""
        return self.time_channels

    @property
    def skip_channels(self) -> list[int]:
        """Widths of the skip connections, in order: the first convolution, then every block and downsampling."""
        widths = [self.channels[0]]
        for level, (channels, repeats) in enumerate(zip(self.channels, self.num_res_blocks, strict=True)):
            widths += [channels] * (repeats + (level < len(self.channels) - 1))
        return widths

    def check_size(self, size: Sequence[int]) -> None:
        """Raise `InvalidGridError` for a latent whose size the levels cannot halve evenly."""
        multiple = self.size_multiple
        if any(n < 1 or n % multiple for n in size):
            low = tuple(max(multiple, n // multiple * multiple) for n in size)
            high = tuple(max(multiple, -(-n // multiple) * multiple) for n in size)
            raise InvalidGridError(
                f"latent size {tuple(size)} is not a multiple of {multiple} on every axis; nearest: {low} or {high}"
            )


class UNetConfig(BackboneConfig):
    """Shape of a `DenoisingUNet`; `regions`, `spacing` and `num_modalities` say what it is told about the scan."""

    out_channels: int = Field(default=4, ge=1)
    regions: bool = False
    spacing: bool = False
    middle_sees_residual: bool = True  # the released image models were trained so, the label generator was not

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding that every residual block sees: time, top region, bottom region, spacing."""
        return self.time_channels * (1 + 2 * self.regions + self.spacing)


def time_features(t: Times, channels: int) -> Tensor:
    """[cos(t f_k), sin(t f_k)] with f_k = 10000^(-k / half), shape (b, channels), float32.

    Vaswani et al., "Attention is all you need", 2017, section 3.5, here with the cosines first.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.to(torch.float32)[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def embed_vector(in_channels: int, channels: int) -> nn.Sequential:
    """A two-layer network that embeds a short vector (time features, a region, a spacing)."""
    return nn.Sequential(nn.Linear(in_channels, channels), nn.SiLU(), nn.Linear(channels, channels))


def halve(x: Tensor) -> Tensor:
    """Mean of every 2 x 2 x 2 voxels."""
    return F.avg_pool3d(x, 2)


def double(x: Tensor) -> Tensor:
    """Every voxel twice on each axis."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class TimeResBlock(nn.Module):
    """Residual block whose second half sees the embedding (b, embedding_channels), added to every voxel.

    With `resample` it also changes the resolution (Dhariwal and Nichol, arXiv 2105.05233, section 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: BackboneConfig,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_groups, in_channels, eps=config.norm_eps)
        self.resample = resample
        self.conv1 = conv3(in_channels, out_channels)
        self.time = nn.Linear(config.embedding_channels, out_channels)
        self.norm2 = GroupNorm(config.norm_groups, out_channels, eps=config.norm_eps)
        self.conv2 = zero_init(conv3(out_channels, out_channels))
        self.shortcut = conv1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h) + self.time(F.silu(embedding))[:, :, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class ConvDownsample(nn.Module):
    """Halves every axis by a strided convolution, padded on both sides (the autoencoder pads one)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class ConvUpsample(nn.Module):
    """Doubles every axis by repetition, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(double(x))


class DownLevel(nn.Module):
    """One resolution on the way down; gives its result and the tensors that the way up will see again."""

    def __init__(self, in_channels: int, level: int, config: BackboneConfig) -> None:
        super().__init__()
        channels, repeats = config.channels[level], config.num_res_blocks[level]
        self.blocks = nn.ModuleList(
            TimeResBlock(in_channels if i == 0 else channels, channels, config) for i in range(repeats)
        )
        num_attentions = repeats if config.attention_levels[level] else 0
        self.attentions = nn.ModuleList(make_attention(channels, config) for _ in range(num_attentions))
        self.downsample = None if level == len(config.channels) - 1 else make_downsample(channels, config)

    def forward(self, h: Tensor, embedding: Tensor, context: ContextBatch | None) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, block in enumerate(self.blocks):
            h = block(h, embedding)
            if self.attentions:
                h = self.attentions[i](h, context)
            skips.append(h)
        if self.downsample is not None:
            h = self.downsample(h, embedding)
            skips.append(h)
        return h, skips


class Middle(nn.Module):
    """The lowest resolution: two residual blocks around attention."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        channels = config.channels[-1]
        self.block1 = TimeResBlock(channels, channels, config)
        self.attention = make_attention(channels, config)
        self.block2 = TimeResBlock(channels, channels, config)

    def forward(self, h: Tensor, embedding: Tensor, context: ContextBatch | None) -> Tensor:
        h = self.block1(h, embedding)
        h = self.attention(h, context)
        return self.block2(h, embedding)


class UpLevel(nn.Module):
    """One resolution on the way up: every block sees one tensor of the way down, the latest first."""

    def __init__(self, in_channels: int, skip_channels: Sequence[int], level: int, config: BackboneConfig) -> None:
        super().__init__()
        channels = config.channels[level]
        widths = [in_channels] + [channels] * (len(skip_channels) - 1)
        self.blocks = nn.ModuleList(
            TimeResBlock(width + skip, channels, config) for width, skip in zip(widths, skip_channels, strict=True)
        )
        num_attentions = len(widths) if config.attention_levels[level] else 0
        self.attentions = nn.ModuleList(make_attention(channels, config) for _ in range(num_attentions))
        self.upsample = None if level == 0 else make_upsample(channels, config)

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor, context: ContextBatch | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if self.attentions:
                h = self.attentions[i](h, context)
        if self.upsample is not None:
            h = self.upsample(h, embedding)
        return h


class DenoisingUNet(nn.Module):
    """Prediction (noise or velocity, as trained) for a noisy latent (b, c, u, v, w) at times t (b,), 0 to 1000."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embedding = embed_vector(config.channels[0], config.time_channels)
        self.modality_embedding = make_modality_embedding(config)
        self.top_region_embedding = embed_vector(NUM_REGIONS, config.time_channels) if config.regions else None
        self.bottom_region_embedding = embed_vector(NUM_REGIONS, config.time_channels) if config.regions else None
        self.spacing_embedding = embed_vector(3, config.time_channels) if config.spacing else None

        self.conv_in = conv3(config.in_channels, config.channels[0])
        self.down = make_down(config)
        self.middle = Middle(config)
        self.up = make_up(config)
        self.norm_out = GroupNorm(config.norm_groups, config.channels[0], eps=config.norm_eps)
        self.conv_out = zero_init(conv3(config.channels[0], config.out_channels))

    def forward(
        self,
        latent: LatentBatch,
        t: Times,
        *,
        top_region: RegionBatch | None = None,
        bottom_region: RegionBatch | None = None,
        spacing: SpacingBatch | None = None,
        modality: ModalityBatch | None = None,
        context: ContextBatch | None = None,
        residuals: Residuals | None = None,
    ) -> PredictionBatch:
        """Prediction (b, out_channels, u, v, w) for a latent (b, in_channels, u, v, w) at times t (b,).

        `top_region`, `bottom_region` (b, 4) one-hot x 100, `spacing` (b, 3) mm x 100, `modality` (b,) integers,
        `context` (b, m, context_channels): each given exactly if the configuration has it. Raises `InvalidGridError`
        for a size that is not a multiple of `config.size_multiple`, `InvalidRequestError` for a condition that is
        missing or not in the configuration.
        """
        self.config.check_size(latent.shape[2:])
        check_given("top_region", top_region, self.config.regions)
        check_given("bottom_region", bottom_region, self.config.regions)
        check_given("spacing", spacing, self.config.spacing)
        check_given("modality", modality, self.config.num_modalities is not None)
        check_given("context", context, self.config.context_channels is not None)

        embedding = self.time_embedding(time_features(t, self.config.channels[0]).to(latent.dtype))
        if self.modality_embedding is not None:
            embedding = embedding + self.modality_embedding(modality)
        if self.top_region_embedding is not None and self.bottom_region_embedding is not None:
            top, bottom = self.top_region_embedding(top_region), self.bottom_region_embedding(bottom_region)
            embedding = torch.cat([embedding, top, bottom], dim=1)
        if self.spacing_embedding is not None:
            embedding = torch.cat([embedding, self.spacing_embedding(spacing)], dim=1)

        h = self.conv_in(latent)
        skips = [h]
        for down_level in self.down:
            h, level_skips = down_level(h, embedding, context)
            skips += level_skips

        if residuals is not None:
            skips = add_residuals(skips, residuals.skips)
            h = skips[-1] if self.config.middle_sees_residual else h
        h = self.middle(h, embedding, context)
        if residuals is not None:
            h = h + residuals.middle

        for up_level in self.up:
            h = up_level(h, skips, embedding, context)
        return self.conv_out(F.silu(self.norm_out(h)))


def make_down(config: BackboneConfig) -> nn.ModuleList:
    """The levels going down."""
    widths = (config.channels[0], *config.channels)
    return nn.ModuleList(DownLevel(widths[level], level, config) for level in range(len(config.channels)))


def make_up(config: UNetConfig) -> nn.ModuleList:
    """The levels going up, the lowest resolution first; each has one block more than its counterpart."""
    skips = config.skip_channels
    levels = nn.ModuleList()
    width = config.channels[-1]
    for level in reversed(range(len(config.channels))):
        repeats = config.num_res_blocks[level] + 1
        levels.append(UpLevel(width, [skips.pop() for _ in range(repeats)], level, config))
        width = config.channels[level]
    return levels


def make_attention(channels: int, config: BackboneConfig) -> nn.Module:
    """Attention over voxels, and to the context where there is one."""
    heads, groups, eps, project = config.head_channels, config.norm_groups, config.norm_eps, config.attention_projection
    if config.context_channels is None:
        return SelfAttention(channels, heads, groups, eps, project)
    return ContextAttention(channels, heads, config.context_channels, groups, eps, project)


def make_downsample(channels: int, config: BackboneConfig) -> nn.Module:
    """Half the resolution, by a residual block or a strided convolution."""
    return TimeResBlock(channels, channels, config, halve) if config.resblock_updown else ConvDownsample(channels)


def make_upsample(channels: int, config: BackboneConfig) -> nn.Module:
    """Twice the resolution, by a residual block or repetition and convolution."""
    return TimeResBlock(channels, channels, config, double) if config.resblock_updown else ConvUpsample(channels)


def make_modality_embedding(config: BackboneConfig) -> nn.Embedding | None:
    """One learned vector a modality, of the time embedding's width."""
    return None if config.num_modalities is None else nn.Embedding(config.num_modalities, config.time_channels)


def zero_init(conv: nn.Conv3d) -> nn.Conv3d:
    """The same convolution with zero weights and bias: what it feeds starts as if it were not there."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def add_residuals(skips: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """Skip tensors plus residuals, one each; raises `InvalidRequestError` where their numbers differ."""
    if len(skips) != len(residuals):
        raise InvalidRequestError(
            f"{len(residuals)} ControlNet residuals for {len(skips)} skip connections; "
            "the ControlNet's levels must be those of the U-Net"
        )
    return [skip + residual for skip, residual in zip(skips, residuals, strict=True)]


def check_given(name: str, value: Tensor | None, wanted: bool) -> None:
    """Raise `InvalidRequestError` for a condition that is missing, or that the network does not have."""
    if wanted and value is None:
        raise InvalidRequestError(f"this network is conditioned on {name!r}, which is missing")
    if not wanted and value is not None:
        raise InvalidRequestError(f"this network is not conditioned on {name!r}; leave it out")
