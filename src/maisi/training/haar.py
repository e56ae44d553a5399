"""A start for autoencoders that halve every axis: the Haar transform, from which training goes on.

Four of its eight coefficients, the average of 2 x 2 x 2 voxels and the difference along each axis, make a latent that
gives a CT back with less error than a randomly started network has after thousands of steps.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from maisi.errors import InvalidConfigError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.blocks import Downsample, ResBlock, TransposedUpsample

AVERAGE_GAIN = 4.0
"""Latents of the average have a standard deviation of about 1 in a CT on [0, 1]."""
DIFFERENCE_GAIN = 16.0
"""Differences are small; magnified they weigh in the diffusion loss, and the posterior's noise does not drown them."""
CENTRE = 0.3
"""The average that becomes latent 0: about the mean of a CT on [0, 1] with the air around the body."""
COEFFICIENTS = 4
GAINS = (AVERAGE_GAIN, *[DIFFERENCE_GAIN] * 3)
M = TypeVar("M", bound=nn.Module)


def check_haar(config: AutoencoderConfig) -> None:
    """Raises `InvalidConfigError` for a network that cannot carry the transform."""
    if (
        len(config.channels) != 2
        or config.latent_channels != COEFFICIENTS
        or config.upsampling != "transposed"
        or config.norm_groups != 1
        or min(config.channels) < 2 * COEFFICIENTS
        or (config.in_channels, config.out_channels) != (1, 1)
    ):
        raise InvalidConfigError(
            f"start: haar needs two levels of at least {2 * COEFFICIENTS} channels, 1 channel in and out, "
            f"{COEFFICIENTS} latent channels, transposed upsampling and norm_groups 1; got {config}"
        )


@torch.no_grad()
def start_at_haar(network: Autoencoder) -> None:
    """Set the weights along one linear path so that decode(encode(x)) is the projection onto those coefficients.

    Every value travels as a pair (h, -h), so that the mean which a norm takes away cancels. The other channels keep
    their random weights and end in nothing until they learn. Raises `InvalidConfigError`.
    """
    check_haar(network.config)
    encoder, decoder = network.encoder, network.decoder
    for module in network.modules():
        if isinstance(module, ResBlock):
            as_identity(module, COEFFICIENTS)
    carry(encoder.conv_in, 1)
    _analyse(_only(encoder.blocks, Downsample).conv)
    _through(encoder.norm_out, encoder.conv_out, GAINS, -CENTRE * AVERAGE_GAIN)
    for pointwise in (network.to_mean, network.from_latent):
        nn.init.eye_(pointwise.weight[:, :, 0, 0, 0])
        nn.init.zeros_(bias_of(pointwise))
    carry(decoder.conv_in, COEFFICIENTS)
    _synthesise(_only(decoder.blocks, TransposedUpsample).conv)
    _through(decoder.norm_out, decoder.conv_out, (1.0,), CENTRE)


def bias_of(convolution: nn.Conv3d | nn.ConvTranspose3d) -> torch.Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _only(blocks: nn.ModuleList, kind: type[M]) -> M:
    (found,) = [block for block in blocks if isinstance(block, kind)]
    return found


def as_identity(block: ResBlock, count: int) -> None:
    """Pass `count` pairs on: the branch ends in zeros, a shortcut that changes the width copies its first channels."""
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(bias_of(block.conv2))
    for norm in (block.norm1, block.norm2):
        undo_division(norm)
    if isinstance(block.shortcut, nn.Conv3d):
        pairs = 2 * count
        block.shortcut.weight[:pairs] = 0
        nn.init.eye_(block.shortcut.weight[:pairs, :pairs, 0, 0, 0])
        bias_of(block.shortcut)[:pairs] = 0


def undo_division(norm: nn.GroupNorm) -> None:
    """Where the variance is small beside eps, the norm takes the mean away and does no more."""
    nn.init.constant_(norm.weight, norm.eps**0.5)


def carry(convolution: nn.Conv3d, count: int) -> None:
    """Inputs 0 to count - 1 as pairs."""
    convolution.weight[: 2 * count] = 0
    bias_of(convolution)[: 2 * count] = 0
    for k in range(count):
        convolution.weight[2 * k, k, 1, 1, 1] = 1
        convolution.weight[2 * k + 1, k, 1, 1, 1] = -1


def _signs(coefficient: int, corner: Sequence[int]) -> float:
    """The Haar function of a coefficient (average, difference along x, y, z) at a corner of the 2 x 2 x 2 voxels."""
    return 1.0 if coefficient == 0 else 1.0 - 2.0 * corner[coefficient - 1]


def _analyse(convolution: nn.Conv3d) -> None:
    """The pair of voxels -> pairs of coefficients. Its window begins at voxel 2 k and is three wide."""
    pairs = 2 * COEFFICIENTS
    convolution.weight[:pairs] = 0
    bias_of(convolution)[:pairs] = 0
    for k, corner in itertools.product(range(COEFFICIENTS), itertools.product(range(2), repeat=3)):
        weight = _signs(k, corner) / 16
        for out, sign in ((2 * k, 1), (2 * k + 1, -1)):
            convolution.weight[(out, 0, *corner)] = sign * weight
            convolution.weight[(out, 1, *corner)] = -sign * weight


def _synthesise(convolution: nn.ConvTranspose3d) -> None:
    """Pairs of latents -> the pair of voxels. Tap 1 writes voxel 2 k, tap 2 voxel 2 k + 1."""
    convolution.weight[:, :2] = 0
    bias_of(convolution)[:2] = 0
    for k, corner in itertools.product(range(COEFFICIENTS), itertools.product(range(2), repeat=3)):
        weight = _signs(k, corner) / (2 * GAINS[k])
        taps = tuple(1 + c for c in corner)
        for out, sign in ((0, 1), (1, -1)):
            convolution.weight[(2 * k, out, *taps)] = sign * weight
            convolution.weight[(2 * k + 1, out, *taps)] = -sign * weight


def _through(norm: nn.GroupNorm, convolution: nn.Conv3d, gains: tuple[float, ...], first_bias: float) -> None:
    """Pairs -> outputs."""
    undo_division(norm)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(bias_of(convolution))
    bias_of(convolution)[0] = first_bias
    for k, gain in enumerate(gains):
        convolution.weight[k, 2 * k, 1, 1, 1] = gain / 2
        convolution.weight[k, 2 * k + 1, 1, 1, 1] = -gain / 2
