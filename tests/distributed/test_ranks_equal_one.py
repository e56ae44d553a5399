"""A network over several ranks gives what it gives on one, and so do its gradients."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_ranks

from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.splitting import Ranks, SlabTensor, gather

TIME = torch.tensor([300.0])


def filled(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1)
    return network.eval()


def autoencoder() -> Autoencoder:
    return filled(Autoencoder(AutoencoderConfig(channels=(8, 16, 16), num_res_blocks=(1, 1, 1), norm_groups=4)))


def unet() -> DenoisingUNet:
    levels = {"channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True), "head_channels": 8}
    return filled(DenoisingUNet(UNetConfig(**levels, norm_groups=4)))


def noise(*size: int) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(sum(size)))


def error(split: Tensor, whole: Tensor) -> float:
    return float((split - whole).abs().max() / (whole.max() - whole.min()))


@torch.no_grad()
def same_everywhere(rank: int, size: int) -> None:
    ranks = Ranks(timeout_s=60)
    network, denoiser = autoencoder(), unet()
    x = noise(4, 7, 3, 2)
    even = network.decode(SlabTensor.split(x, ranks=ranks)).gather()
    assert error(even, network.decode(x)) < 1e-5
    uneven = [1] * (size - 1) + [8 - size]
    assert error(network.decode(SlabTensor.split(x, sizes=uneven, ranks=ranks)).gather(), network.decode(x)) < 1e-5
    many = SlabTensor.split(x.transpose(2, 4), 7, axis=2, ranks=ranks)
    assert error(network.decode(many).gather(), network.decode(x.transpose(2, 4))) < 1e-5

    volume = noise(1, 8, 20, 8)
    for split, whole in zip(
        gather(*network.encode(SlabTensor.split(volume, axis=1, ranks=ranks))), network.encode(volume), strict=True
    ):
        assert error(split, whole) < 1e-5
    latent = noise(4, 4, 6, 8)
    assert error(denoiser(SlabTensor.split(latent, axis=2, ranks=ranks), TIME).gather(), denoiser(latent, TIME)) < 1e-5
    few = SlabTensor.split(latent[:, :, :2], ranks=ranks)  # more ranks than rows at the lower level
    assert error(denoiser(few, TIME).gather(), denoiser(latent[:, :, :2], TIME)) < 1e-5


def same_gradients(rank: int, size: int) -> None:
    ranks = Ranks(timeout_s=60)
    cases = [
        (autoencoder().double(), lambda n, x: n.decode(x), noise(4, 5, 3, 2)),
        (autoencoder().double(), lambda n, x: n.encode(x)[0], noise(1, 12, 8, 4)),
        (unet().double(), lambda n, x: n(x, TIME), noise(4, 4, 4, 2)),
    ]
    for network, call, x in cases:
        x = x.double().requires_grad_()
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        target = torch.randn(call(network, x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        whole = torch.autograd.grad((call(network, x) * target).sum(), [x, *parameters], allow_unused=True)
        (call(network, SlabTensor.split(x, ranks=ranks)).gather() * target).sum().backward()
        ranks.reduce_gradients([x, *parameters])
        scale = max(float(gradient.abs().max()) for gradient in whole if gradient is not None)
        for parameter, gradient in zip([x, *parameters], whole, strict=True):
            want = torch.zeros_like(parameter) if gradient is None else gradient
            assert parameter.grad is not None
            assert float((parameter.grad - want).abs().max()) < 1e-10 * scale


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_same_volume(size: int) -> None:
    run_ranks(same_everywhere, size, size)


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_over_ranks_are_those_of_the_whole(size: int) -> None:
    run_ranks(same_gradients, size, size)
