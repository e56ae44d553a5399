"""The network of a configuration."""

from torch import nn

from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.segmenter import SegmentationUNet, SegmenterConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

NetworkConfig = AutoencoderConfig | UNetConfig | ControlNetConfig | SegmenterConfig


def build_network(config: NetworkConfig) -> nn.Module:
    """The network that a configuration describes, freshly initialised."""
    if isinstance(config, AutoencoderConfig):
        return Autoencoder(config)
    if isinstance(config, UNetConfig):
        return DenoisingUNet(config)
    if isinstance(config, SegmenterConfig):
        return SegmentationUNet(config)
    return ControlNet(config)
