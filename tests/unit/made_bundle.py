"""A bundle of random weights, small enough for any test."""

import torch

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

BACKBONE = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 9,
}


def random_bundle(limits: Limits) -> Bundle:
    """Networks of random weights for sizes that are multiples of 4."""
    torch.manual_seed(0)
    networks = {
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
