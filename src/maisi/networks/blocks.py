"""Building blocks shared by the networks; feature maps are (b, channels, x, y, z)."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv3d:
    """A 3x3x3 convolution with zero padding of one voxel."""
    return nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


def conv1(in_channels: int, out_channels: int) -> nn.Conv3d:
    """A pointwise convolution."""
    return nn.Conv3d(in_channels, out_channels, kernel_size=1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that is right to rounding in every memory layout.

    On a CPU torch's kernel for channels last adds up squares in float32: groups of 4 channels and 96^3 voxels come out
    wrong by 4e-4 of the largest value, larger ones by more.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class ResBlock(nn.Module):
    """Pre-activation residual block: (norm, SiLU, conv) twice, plus a pointwise shortcut where the width changes.

    He et al., arXiv 1603.05027, figure 4e. Without `groups` every channel is one: an instance norm.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int | None, eps: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups or in_channels, in_channels, eps=eps)
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = GroupNorm(groups or out_channels, out_channels, eps=eps)
        self.conv2 = conv3(out_channels, out_channels)
        self.shortcut = conv1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Downsample(nn.Module):
    """Halves every axis by a strided convolution that pads only the high side of each axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1, 0, 1)))


class TrilinearUpsample(nn.Module):
    """Doubles every axis by trilinear interpolation (corners not aligned), then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False))


class TransposedUpsample(nn.Module):
    """Doubles every axis by one transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, channels, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
