"""Losses of the volume autoencoder (MAISI, arXiv 2409.11169, section 3.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from maisi.bundle.public_weights import read_tensors, squeezenet
from maisi.networks.trunks import SqueezeNet
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


def squeezenet_features(path: str) -> FeatureNetwork:
    """LPIPS SqueezeNet taps from a local file of SqueezeNet 1.1 weights, with the names of the public checkpoint.

    Raises `InvalidRequestError` where a tensor is missing. Slices in [0, 1] are fed as they are.
    """
    return _Grey(squeezenet(read_tensors(Path(path)), Path(path)).eval().requires_grad_(False))


class _Grey:
    """SqueezeNet on slices of one channel, wherever these are."""

    def __init__(self, network: SqueezeNet) -> None:
        self.network = network

    def __call__(self, slices: Tensor) -> Sequence[Tensor]:
        taps: Sequence[Tensor] = self.network.to(slices.device, slices.dtype)(slices.repeat(1, 3, 1, 1))
        return taps
