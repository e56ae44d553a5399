"""A small residual U-Net that tells the structures of a CT.

Ronneberger et al., arXiv 1505.04597, with pre-activation residual blocks (He et al., 1603.05027), instance norms (as in
nnU-Net, Isensee et al., 1809.10486) and skip connections that are added, which halves what the finest level costs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from maisi.errors import InvalidGridError
from maisi.networks.blocks import Downsample, GroupNorm, ResBlock, conv1, conv3
from maisi.shapes import Frozen, ImageBatch, Size3, VoxelBatch


class SegmentedClass(Frozen):
    """What a segmenter tells apart: a name, the ids that count as it, and the id that is written for it."""

    name: str
    ids: tuple[int, ...] = Field(min_length=1)
    written_as: int = Field(ge=1, le=255)


class SegmenterConfig(Frozen):
    """Shape of a `SegmentationUNet`, its classes, and how it is to be used.

    Channel 0 of its scores is what lies outside of the body; class k has channel k + 1. It was trained on patches of
    `window` voxels of `spacing_mm`, seen through each of `windows_hu`.
    """

    classes: tuple[SegmentedClass, ...] = Field(min_length=1)
    spacing_mm: float = Field(default=4.0, gt=0)
    window: Size3 = (64, 64, 64)
    windows_hu: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0), (-160.0, 240.0))  # the second one: soft tissue
    channels: tuple[int, ...] = (16, 32, 64, 128)
    num_res_blocks: tuple[int, ...] = (1, 1, 2, 2)  # going down; going up there is one a level
    norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "SegmenterConfig":
        if not self.channels or len(self.channels) != len(self.num_res_blocks):
            raise ValueError(
                f"channels and num_res_blocks need one entry a level: got {self.channels} and {self.num_res_blocks}"
            )
        if not self.windows_hu or any(low >= high for low, high in self.windows_hu):
            raise ValueError(f"windows_hu {self.windows_hu} are not pairs of a low and a high value")
        if any(n % self.size_multiple for n in self.window):
            raise ValueError(f"window {self.window} is not a multiple of {self.size_multiple} on every axis")
        ids = [id for each in self.classes for id in each.ids]
        names = [each.name for each in self.classes]
        if len(set(ids)) < len(ids) or len(set(names)) < len(names):
            raise ValueError("classes share an id or a name; accepted: each in one class")
        return self

    @property
    def size_multiple(self) -> int:
        """Every axis of a volume must be a multiple of this."""
        return 2 ** (len(self.channels) - 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their channels from 1 on."""
        return tuple(each.name for each in self.classes)


class SegmentationUNet(nn.Module):
    """Volume (b, 1, x, y, z) in HU -> scores (b, 1 + classes, x, y, z) before a softmax."""

    keeps_float32 = True  # HU have more digits than half precision

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        widths, eps = config.channels, config.norm_eps
        self.conv_in = conv3(len(config.windows_hu), widths[0])
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.widen = nn.ModuleList(), nn.ModuleList()
        width = widths[0]
        for level, (channels, repeats) in enumerate(zip(widths, config.num_res_blocks, strict=True)):
            blocks = [ResBlock(width if i == 0 else channels, channels, None, eps) for i in range(repeats)]
            self.down.append(nn.Sequential(*blocks))
            width = channels if repeats else width
            if level < len(widths) - 1:
                self.shrink.append(Downsample(width))
        for channels, skip in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.widen.append(conv1(channels, skip))
            self.up.append(ResBlock(skip, skip, None, eps))
        self.norm_out = GroupNorm(widths[0], widths[0], eps=eps)
        self.conv_out = conv1(widths[0], 1 + len(config.classes))

    def forward(self, hu: ImageBatch) -> VoxelBatch:
        self.check_size(hu.shape[2:])
        h = self.conv_in(self._windowed(hu))
        skips = []
        for level, blocks in enumerate(self.down):
            h = blocks(h)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        for widen, block in zip(self.widen, self.up, strict=True):
            h = F.interpolate(widen(h), scale_factor=2.0, mode="trilinear", align_corners=False)
            h = block(h + skips.pop())
        return self.conv_out(F.silu(self.norm_out(h)))

    def _windowed(self, hu: ImageBatch) -> VoxelBatch:
        """The volume through each window, [0, 1]."""
        return torch.cat([((hu - low) / (high - low)).clamp(0.0, 1.0) for low, high in self.config.windows_hu], dim=1)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise `InvalidGridError` for a size that the levels cannot halve evenly."""
        multiple = self.config.size_multiple
        if any(n < 1 or n % multiple for n in size):
            raise InvalidGridError(f"size {tuple(size)} is not a multiple of {multiple} on every axis")
