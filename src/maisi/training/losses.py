"""Losses of the volume autoencoder (MAISI, arXiv 2409.11169, section 3.1)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.errors import InvalidRequestError
from maisi.shapes import ImageBatch, LatentBatch


def kl_divergence(mean: LatentBatch, log_variance: LatentBatch) -> Tensor:
    """KL of the posterior from a standard normal, averaged over latent elements (so its weight knows no patch size)."""
    return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1.0).mean()


def generator_loss(logits: Tensor) -> Tensor:
    """Least-squares adversarial loss of the generator: fakes should score 1 (Mao et al., 2017)."""
    return (logits - 1.0).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least-squares adversarial loss of the discriminator, halved: real 1, fake 0 (Mao et al., 2017)."""
    return 0.5 * ((real - 1.0).square().mean() + fake.square().mean())


@runtime_checkable
class FeatureNetwork(Protocol):
    """Anything that turns slices (n, 1, h, w) in [0, 1] into feature maps (n, c, h', w')."""

    def __call__(self, slices: Tensor) -> Sequence[Tensor]: ...


def perceptual_loss(
    network: FeatureNetwork, fake: ImageBatch, real: ImageBatch, per_axis: int, draw: torch.Generator
) -> Tensor:
    """Distance of unit-normalised features on random slices, summed over the three axes (LPIPS, Zhang et al., 2018)."""
    total = torch.zeros((), dtype=torch.float32, device=fake.device)
    for dim in (2, 3, 4):
        chosen = torch.randperm(fake.shape[dim], generator=draw)[:per_axis].to(fake.device)
        slices = [x.index_select(dim, chosen).movedim(dim, 1).flatten(0, 1) for x in (fake, real)]
        distances = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(*map(network, slices), strict=True)]
        total = total + torch.stack(distances).sum()
    return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


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


def squeezenet_features(path: str) -> FeatureNetwork:
    """LPIPS SqueezeNet taps from a local safetensors file of SqueezeNet 1.1 feature weights.

    Keys as in the public checkpoint: `features.0.weight`, `features.3.squeeze.weight`, ... Raises
    `InvalidRequestError` where a tensor is missing. Slices in [0, 1] are fed as they are.
    """
    from safetensors.torch import load_file

    weights = load_file(path)
    return _SqueezeNet(weights, path)


class _SqueezeNet:
    """SqueezeNet 1.1 (Iandola et al., 2016) up to its last fire module, returning the seven LPIPS taps."""

    FIRES = (3, 4, 6, 7, 9, 10, 11, 12)
    POOL_BEFORE = (3, 6, 9)
    TAPS = (4, 7, 9, 10, 11, 12)

    def __init__(self, weights: dict[str, Tensor], path: str) -> None:
        names = ["features.0"] + [
            f"features.{n}.{part}" for n in self.FIRES for part in ("squeeze", "expand1x1", "expand3x3")
        ]
        wanted = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
        missing = [key for key in wanted if key not in weights]
        if missing:
            raise InvalidRequestError(
                f"{path} is not a SqueezeNet 1.1: {len(missing)} tensors are missing, {missing[:3]}"
            )
        self.weights = {key: weights[key] for key in wanted}

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"].to(x), self.weights[f"{name}.bias"].to(x)
        return F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))

    def __call__(self, slices: Tensor) -> Sequence[Tensor]:
        h = self._conv(slices.repeat(1, 3, 1, 1), "features.0", stride=2)
        taps = [h]
        for fire in self.FIRES:
            if fire in self.POOL_BEFORE:
                h = F.max_pool2d(h, 3, 2, ceil_mode=True)
            name = f"features.{fire}"
            squeezed = self._conv(h, f"{name}.squeeze")
            h = torch.cat(
                [self._conv(squeezed, f"{name}.expand1x1"), self._conv(squeezed, f"{name}.expand3x3", padding=1)], 1
            )
            if fire in self.TAPS:
                taps.append(h)
        return taps
