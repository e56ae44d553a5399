"""A bundle of random weights, small enough for any test."""

from typing import Any

import torch

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

LEVELS: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
}
BACKBONE: dict[str, Any] = {**LEVELS, "num_modalities": 9}
SMALL = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(20, 20, 20), max_size=(32, 32, 32))


def random_bundle(limits: Limits) -> Bundle:
    """Networks of random weights for sizes that are multiples of 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks: dict[str, Any] = {
            "autoencoder": Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)),
            "unet": DenoisingUNet(UNetConfig(**BACKBONE, regions=True, spacing=True)),
            "controlnet": ControlNet(ControlNetConfig(**BACKBONE, embedding_widths=(4, 8))),
        }
        for network in networks.values():
            for parameter in network.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
    networks["autoencoder"].decoder.conv_out.bias.data.fill_(0.5)
    info = BundleInfo(
        name="tiny", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec(), limits=limits
    )
    return Bundle.of(info, networks)
