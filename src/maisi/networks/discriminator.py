"""The patch discriminator that the autoencoder is trained against.

Isola et al., arXiv 1611.07004 (PatchGAN), in three dimensions: it judges overlapping patches, not the whole volume.
"""

from itertools import pairwise

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from maisi.errors import InvalidGridError
from maisi.shapes import Frozen, VoxelBatch

NORM_EPS = 1e-5
SLOPE = 0.2  # of the leaky ReLU, as in the paper


class DiscriminatorConfig(Frozen):
    """Shape of a `PatchDiscriminator`; the defaults are those MAISI was trained with."""

    in_channels: int = Field(default=1, ge=1)
    out_channels: int = Field(default=1, ge=1)
    channels: int = Field(default=32, ge=1)
    num_layers: int = Field(default=3, ge=1)

    @property
    def min_size(self) -> int:
        """The shortest edge of a volume, in voxels, that every layer can judge and normalise."""
        return 3 * 2**self.num_layers


class PatchDiscriminator(nn.Module):
    """Feature maps of a volume (b, in_channels, x, y, z), the last one the logits of its patches, high for real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * 2**i for i in range(config.num_layers + 1)]
        # All but the last two halve the resolution; a norm follows, so the middle ones need no bias.
        self.convs = nn.ModuleList([nn.Conv3d(config.in_channels, widths[0], kernel_size=4, stride=2, padding=1)])
        for i, (width, next_width) in enumerate(pairwise(widths), start=1):
            stride = 1 if i == config.num_layers else 2
            self.convs.append(nn.Conv3d(width, next_width, kernel_size=4, stride=stride, padding=1, bias=False))
        self.convs.append(nn.Conv3d(widths[-1], config.out_channels, kernel_size=4, padding=1))
        for parameter in self.parameters():  # section 6.2 of the paper
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def forward(self, x: VoxelBatch) -> list[Tensor]:
        """One feature map a layer; raises `InvalidGridError` for a volume smaller than `min_size` of its settings."""
        least = self.config.min_size
        if any(n < least for n in x.shape[2:]):
            raise InvalidGridError(f"size {tuple(x.shape[2:])} is too small to judge; at least {least} per axis")
        h = F.leaky_relu(self.convs[0](x), SLOPE)
        features = [h]
        for conv in self.convs[1:-1]:
            h = F.leaky_relu(F.instance_norm(conv(h), eps=NORM_EPS), SLOPE)
            features.append(h)
        return [*features, self.convs[-1](h)]
