"""A bundle with random weights for tests that generate."""

from pathlib import Path
from typing import Any

import torch

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec, save_bundle
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

BACKBONE: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, False),
    "head_channels": 8,
    "norm_groups": 4,
}


def save_tiny_bundle(folder: Path) -> Path:
    """A bundle that takes sizes of multiples of 4 up to 32 at 2 to 20 mm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks: dict[str, torch.nn.Module] = {
            "autoencoder": Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)),
            "unet": DenoisingUNet(UNetConfig(**BACKBONE, regions=True, spacing=True)),
            "controlnet": ControlNet(ControlNetConfig(**BACKBONE, embedding_widths=(4, 8))),
        }
    limits = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(20, 20, 20), max_size=(32, 32, 32))
    info = BundleInfo(
        name="tiny", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec(), limits=limits
    )
    return save_bundle(Bundle.of(info, networks), folder / "tiny")
