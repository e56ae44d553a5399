"""Trunks of two networks of photographs and radiographs, whose maps tell how alike planes look.

SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360) and ResNet-50 (He et al., arXiv 1512.03385) without their last layers;
tensors have the names of the public checkpoints. Beside them filters that need no weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRES = {  # place among the layers of the public checkpoint: channels in, squeezed, of each half that comes out
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
POOL_BEFORE = (3, 6, 9)
TAPS = (4, 7, 9, 10, 11, 12)  # besides the first layer, of LPIPS
TAP_CHANNELS = (64, 128, 256, 384, 384, 512, 512)


class SqueezeNet(nn.Module):
    """Images (n, 3, h, w) to the seven maps that LPIPS looks at, (n, c, h', w') with c of `TAP_CHANNELS`."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(3, TAP_CHANNELS[0], kernel_size=3, stride=2)}
        layers |= {str(place): Fire(*channels) for place, channels in FIRES.items()}
        self.features = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = F.relu(self.features["0"](x))
        taps = [h]
        for place in FIRES:
            if place in POOL_BEFORE:
                h = F.max_pool2d(h, kernel_size=3, stride=2, ceil_mode=True)
            h = self.features[str(place)](h)
            if place in TAPS:
                taps.append(h)
        return taps


class Fire(nn.Module):
    """Few channels from many, and many from these: (n, c, h, w) to (n, 2 `expanded`, h, w)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(h)), F.relu(self.expand3x3(h))], dim=1)


class ResNet50(nn.Module):
    """Images (n, 3, h, w) to maps (n, 2048, h / 32, w / 32).

    There are two: of torchvision, and of Keras (`keras`), whose convolutions have biases and whose blocks halve in
    their first convolution instead of the second. RadImageNet was published as both.
    """

    def __init__(self, keras: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=keras)
        self.bn1 = _norm(64, keras)
        self.layer1 = _stage(64, 64, 3, 1, keras)
        self.layer2 = _stage(256, 128, 4, 2, keras)
        self.layer3 = _stage(512, 256, 6, 2, keras)
        self.layer4 = _stage(1024, 512, 3, 2, keras)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.max_pool2d(h, kernel_size=3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            h = stage(h)
        return h


class Bottleneck(nn.Module):
    """A residual block of three convolutions: (n, c, h, w) to (n, 4 `width`, h / stride, w / stride)."""

    def __init__(self, channels: int, width: int, stride: int, keras: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if keras else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, kernel_size=1, stride=first, bias=keras)
        self.bn1 = _norm(width, keras)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=second, padding=1, bias=keras)
        self.bn2 = _norm(width, keras)
        self.conv3 = nn.Conv2d(width, 4 * width, kernel_size=1, bias=keras)
        self.bn3 = _norm(4 * width, keras)
        changes = stride != 1 or channels != 4 * width
        shortcut = nn.Conv2d(channels, 4 * width, kernel_size=1, stride=stride, bias=keras)
        self.downsample = nn.Sequential(shortcut, _norm(4 * width, keras)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


def _stage(channels: int, width: int, num_blocks: int, stride: int, keras: bool) -> nn.Sequential:
    first = Bottleneck(channels, width, stride, keras)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1, keras) for _ in range(num_blocks - 1)))


def _norm(channels: int, keras: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5 if keras else 1e-5)


class OrientedEdges:
    """Multi-scale features of fixed filters: local mean, first and second derivatives at three sizes.

    Needs no weights and no download. Early layers of trained feature networks respond to the same patterns.
    """

    def __init__(self, num_scales: int = 3) -> None:
        self.num_scales = num_scales
        smooth, slope, bend = (
            torch.tensor([1.0, 2.0, 1.0]),
            torch.tensor([-1.0, 0.0, 1.0]),
            torch.tensor([1.0, -2.0, 1.0]),
        )
        pairs = [(smooth, smooth), (smooth, slope), (slope, smooth), (smooth, bend), (bend, smooth), (slope, slope)]
        filters = torch.stack([torch.outer(a, b) / torch.outer(a, b).abs().sum() for a, b in pairs])
        self.filters = filters[:, None]

    def __call__(self, slices: Tensor) -> Sequence[Tensor]:
        maps = []
        for _ in range(self.num_scales):
            features = F.conv2d(slices, self.filters.to(slices), padding=1)
            maps.append(torch.cat([features, torch.full_like(features[:, :1], 0.05)], 1))
            slices = F.avg_pool2d(slices, 2)
        return maps
