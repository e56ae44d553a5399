"""A start for autoencoders of label maps: the mean of each bit over a latent voxel, read as the nearest id.

A network that starts at random needs thousands of steps before it tells a hundred structures apart; from here on it
learns what the means blur.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from maisi.anatomy.bits import NUM_BITS
from maisi.errors import InvalidConfigError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.blocks import Downsample, ResBlock, TransposedUpsample
from maisi.training.haar import as_identity, bias_of, carry, undo_division

GAIN = 2.0
"""Latents of bits have a standard deviation of about 1."""
CENTRE = 0.5
SHARPNESS = 8.0
"""How much more a structure scores than one that differs in one bit."""


def check_bits_start(config: AutoencoderConfig) -> None:
    """Raises `InvalidConfigError` for a network that cannot carry the means of bits."""
    if (
        config.latent_channels < NUM_BITS
        or config.upsampling != "transposed"
        or config.norm_groups != 1
        or min(config.channels) < 2 * NUM_BITS
    ):
        raise InvalidConfigError(
            f"start: bits needs {2 * NUM_BITS} channels or more on every level, {NUM_BITS} latent channels, upsampling "
            f"transposed and norm_groups 1; got {config}"
        )


@torch.no_grad()
def start_at_bits(network: Autoencoder, channels: Sequence[int]) -> None:
    """Set the weights along one linear path; `channels` are the ids that the scores stand for.

    Every value travels as a pair (h, -h), so that the mean which a norm takes away cancels. The other channels keep
    their random weights and end in nothing until they learn. Raises `InvalidConfigError`.
    """
    check_bits_start(network.config)
    for module in network.modules():
        if isinstance(module, ResBlock):
            as_identity(module, NUM_BITS)
        elif isinstance(module, Downsample):
            _average(module.conv)
        elif isinstance(module, TransposedUpsample):
            _repeat(module.conv)
    encoder, decoder = network.encoder, network.decoder
    for convolution in (encoder.conv_in, decoder.conv_in):
        carry(convolution, NUM_BITS)
    for norm in (encoder.norm_out, decoder.norm_out):
        undo_division(norm)
    _to_latent(encoder.conv_out)
    for pointwise in (network.to_mean, network.from_latent):
        nn.init.eye_(pointwise.weight[:, :, 0, 0, 0])
        nn.init.zeros_(bias_of(pointwise))
    _to_scores(decoder.conv_out, channels)


def _average(convolution: nn.Conv3d) -> None:
    """Pairs -> their means over 2 x 2 x 2 voxels. The window begins at voxel 2 k and is three wide."""
    convolution.weight[: 2 * NUM_BITS] = 0
    bias_of(convolution)[: 2 * NUM_BITS] = 0
    for k, corner in itertools.product(range(2 * NUM_BITS), itertools.product(range(2), repeat=3)):
        convolution.weight[(k, k, *corner)] = 1 / 8


def _repeat(convolution: nn.ConvTranspose3d) -> None:
    """Pairs -> the same in each of 2 x 2 x 2 voxels. Tap 1 writes voxel 2 k, tap 2 voxel 2 k + 1."""
    convolution.weight[:, : 2 * NUM_BITS] = 0
    bias_of(convolution)[: 2 * NUM_BITS] = 0
    for k, corner in itertools.product(range(2 * NUM_BITS), itertools.product((1, 2), repeat=3)):
        convolution.weight[(k, k, *corner)] = 1


def _to_latent(convolution: nn.Conv3d) -> None:
    """Pairs -> latents; those beyond the bits are zero."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(bias_of(convolution))
    for bit in range(NUM_BITS):
        convolution.weight[bit, 2 * bit, 1, 1, 1] = GAIN / 2
        convolution.weight[bit, 2 * bit + 1, 1, 1, 1] = -GAIN / 2
        bias_of(convolution)[bit] = -GAIN * CENTRE


def _to_scores(convolution: nn.Conv3d, channels: Sequence[int]) -> None:
    """Pairs of latents -> the score of each id: larger the more of its bits agree."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(bias_of(convolution))
    for channel, id in enumerate(channels):
        for bit in range(NUM_BITS):
            sign = 1.0 if id >> bit & 1 else -1.0
            weight = sign * SHARPNESS / (2 * GAIN)
            convolution.weight[channel, 2 * bit, 1, 1, 1] = weight
            convolution.weight[channel, 2 * bit + 1, 1, 1, 1] = -weight
