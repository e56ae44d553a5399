"""MONAI's networks with our weights: the reference that ours are compared with."""

import logging
import math
from collections.abc import Sequence

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi, MaisiGroupNorm3D
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets import PatchDiscriminator as MonaiPatchDiscriminator
from torch import Tensor, nn

from maisi.bundle.upstream import to_upstream
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import build_network
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from maisi.networks.unet import BackboneConfig, Residuals, UNetConfig

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

SMALL = {
    "autoencoder": AutoencoderConfig(channels=(16, 32), num_res_blocks=(1, 2), norm_groups=8, latent_channels=3),
    "mask-autoencoder": AutoencoderConfig(
        in_channels=8,
        out_channels=5,
        channels=(16, 32, 16),
        num_res_blocks=(1, 2, 1),
        norm_groups=8,
        upsampling="transposed",
    ),
    "unet": UNetConfig(
        channels=(32, 64, 128),
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, True),
        norm_groups=16,
        num_modalities=8,
        regions=True,
        spacing=True,
    ),
    "updown-unet": UNetConfig(
        in_channels=3,
        out_channels=2,
        channels=(32, 64),
        num_res_blocks=(2, 1),
        attention_levels=(True, False),
        head_channels=16,
        norm_groups=8,
        attention_projection=False,
        resblock_updown=True,
        regions=True,
    ),
    "context-unet": UNetConfig(
        channels=(32, 64),
        num_res_blocks=(1, 2),
        attention_levels=(False, True),
        context_channels=10,
        middle_sees_residual=False,
    ),
    "controlnet": ControlNetConfig(
        channels=(32, 64, 128),
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, True),
        norm_groups=16,
        num_modalities=8,
        embedding_widths=(8, 32),
    ),
    "updown-controlnet": ControlNetConfig(
        channels=(32, 64),
        num_res_blocks=(2, 1),
        attention_levels=(True, False),
        head_channels=16,
        norm_groups=8,
        attention_projection=False,
        resblock_updown=True,
        embedding_widths=(8, 16, 24),
    ),
}


def drawn(network_on_meta: nn.Module, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The network with every parameter drawn: none zero, norms far from the identity, activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    network = network_on_meta.to_empty(device="cpu").to(dtype).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and not name.endswith("embedding.weight"):
            parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(std=0.3, generator=generator)
        else:
            parameter.normal_(mean=1.0, std=0.3, generator=generator)
    return network


def drawn_network(
    config: AutoencoderConfig | UNetConfig | ControlNetConfig | DiscriminatorConfig, dtype: torch.dtype
) -> nn.Module:
    """Our network of a configuration, with drawn weights."""
    with torch.device("meta"):
        network = PatchDiscriminator(config) if isinstance(config, DiscriminatorConfig) else build_network(config)
    return drawn(network, dtype)


def oracle_of(network: nn.Module) -> nn.Module:
    """MONAI's network of the same configuration; it shares our network's tensors, loaded strictly by the key map."""
    with torch.device("meta"):
        reference = _build(network.config, next(network.parameters()).dtype)
    reference.load_state_dict(to_upstream(network), assign=True)
    return reference.eval().requires_grad_(False)


def meta_oracle(config: AutoencoderConfig | UNetConfig | ControlNetConfig | DiscriminatorConfig) -> nn.Module:
    """MONAI's network without weights."""
    with torch.device("meta"):
        return _build(config, torch.float32)


def _build(config, dtype: torch.dtype) -> nn.Module:
    if isinstance(config, AutoencoderConfig):
        return _autoencoder(config, dtype)
    if isinstance(config, ControlNetConfig):
        return ControlNetMaisi(
            **_backbone(config),
            num_channels=config.channels,
            conditioning_embedding_in_channels=config.condition_channels,
            conditioning_embedding_num_channels=config.embedding_widths,
        )
    if isinstance(config, DiscriminatorConfig):
        return MonaiPatchDiscriminator(
            spatial_dims=3,
            channels=config.channels,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers_d=config.num_layers,
            norm="INSTANCE",
        )
    if not config.middle_sees_residual:
        # MONAI's upcast (as released) mixes dtypes in float64 and changes nothing in float32.
        return DiffusionModelUNet(
            **_backbone(config),
            channels=config.channels,
            out_channels=config.out_channels,
            upcast_attention=dtype == torch.float32,
        )
    return DiffusionModelUNetMaisi(
        **_backbone(config),
        num_channels=config.channels,
        out_channels=config.out_channels,
        include_top_region_index_input=config.regions,
        include_bottom_region_index_input=config.regions,
        include_spacing_input=config.spacing,
    )


def _backbone(config: BackboneConfig) -> dict:
    return {
        "spatial_dims": 3,
        "in_channels": config.in_channels,
        "num_res_blocks": config.num_res_blocks,
        "attention_levels": config.attention_levels,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resblock_updown": config.resblock_updown,
        "num_head_channels": config.head_channels,
        "with_conditioning": config.context_channels is not None,
        "cross_attention_dim": config.context_channels,
        "num_class_embeds": config.num_modalities,
        "include_fc": config.attention_projection,
    }


def _autoencoder(config: AutoencoderConfig, dtype: torch.dtype) -> nn.Module:
    network = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_res_blocks=config.num_res_blocks,
        num_channels=config.channels,
        attention_levels=[False] * len(config.channels),
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        use_convtranspose=config.upsampling == "transposed",
        num_splits=1,
        norm_float16=False,
    )
    if dtype == torch.float64:
        _replace_norms(network)
    return network


def _replace_norms(network: nn.Module) -> None:
    """Put torch's GroupNorm in the place of MONAI's own, which gives float32 whatever it is given."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaisiGroupNorm3D):
                setattr(parent, name, nn.GroupNorm(child.num_groups, child.num_channels, eps=child.eps))


def draw(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_bits(config: ControlNetConfig, batch: int, latent_size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros and ones at the size of the label map."""
    size = [n * config.condition_factor for n in latent_size]
    return (draw(batch, config.condition_channels, *size, dtype=dtype, seed=5) > 0).to(dtype)


def draw_conditions(config: UNetConfig, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that a U-Net of this configuration wants to know, by our names; different for each of the batch."""
    conditions = {}
    if config.regions:
        conditions["top_region"] = 100.0 * torch.eye(4, dtype=dtype)[[1, 0]][:batch]
        conditions["bottom_region"] = 100.0 * torch.eye(4, dtype=dtype)[[2, 3]][:batch]
    if config.spacing:
        conditions["spacing"] = 100.0 * torch.tensor([[0.75, 0.8, 2.5], [1.5, 1.0, 5.0]], dtype=dtype)[:batch]
    if config.num_modalities is not None:
        conditions["modality"] = torch.tensor([1, config.num_modalities - 1])[:batch]
    if config.context_channels is not None:
        conditions["context"] = draw(batch, 2, config.context_channels, dtype=dtype, seed=2)
    return conditions


def draw_residuals(config: BackboneConfig, batch: int, latent_size: Sequence[int], dtype: torch.dtype) -> Residuals:
    """Residuals of order one for every skip connection and the middle."""
    sizes, size = [list(latent_size)], list(latent_size)
    for level, repeats in enumerate(config.num_res_blocks):
        sizes += [size] * repeats
        if level < len(config.channels) - 1:
            size = [n // 2 for n in size]
            sizes.append(size)
    skips = tuple(
        draw(batch, width, *size, dtype=dtype, seed=10 + i)
        for i, (width, size) in enumerate(zip(config.skip_channels, sizes, strict=True))
    )
    return Residuals(skips, draw(batch, config.channels[-1], *size, dtype=dtype, seed=9))


def ask_unet(unet: nn.Module, latent: Tensor, t: Tensor, conditions: dict[str, Tensor], residuals: Residuals | None):
    """MONAI's prediction for inputs under our names."""
    theirs = {
        "top_region": "top_region_index_tensor",
        "bottom_region": "bottom_region_index_tensor",
        "spacing": "spacing_tensor",
        "modality": "class_labels",
        "context": "context",
    }
    arguments = {theirs[name]: value for name, value in conditions.items()}
    if residuals is not None:
        arguments["down_block_additional_residuals"] = residuals.skips
        arguments["mid_block_additional_residual"] = residuals.middle
    return unet(latent, t, **arguments)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value expected; fails on another shape, on nan and on all zeros."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float(expected.abs().max()) > 0.1
    return float((got - expected).abs().max() / expected.abs().max())


def check(errors: dict, dtype: torch.dtype) -> None:
    """Fail where an error is above what its precision allows; `--log-cli-level=INFO` shows the largest."""
    logger.info("largest relative error %.1e", max(errors.values()))
    assert max(errors.values()) <= TOLERANCE[dtype], errors
