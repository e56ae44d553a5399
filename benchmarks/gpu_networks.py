"""Networks with random weights, ours and MONAI's with the same, and what they are given."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec
from maisi.bundle.upstream import RELEASED, to_upstream
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import NetworkConfig, build_network
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.unet import BackboneConfig, Residuals, UNetConfig
from maisi.splitting.precision import lowered

RELEASED_SPLITS = 4  # `num_splits` of the released rflow-ct configuration
WINDOW, OVERLAP = 80, 0.4  # latent voxels: how a volume of 512^3 is decoded as released

_SMALL_BACKBONE = {
    "channels": (16, 32),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 8,
    "num_modalities": 16,
    "resblock_updown": True,
}
SMALL: dict[str, NetworkConfig] = {
    "autoencoder": AutoencoderConfig(channels=(16, 32), num_res_blocks=(1, 1), norm_groups=8),
    "unet": UNetConfig(**_SMALL_BACKBONE, spacing=True),
    "controlnet": ControlNetConfig(**_SMALL_BACKBONE, embedding_widths=(8, 32)),
    "all-unet": UNetConfig(**_SMALL_BACKBONE, spacing=True, regions=True),
    "context-unet": UNetConfig(
        channels=(32, 64),
        num_res_blocks=(1, 1),
        attention_levels=(False, True),
        context_channels=10,
        middle_sees_residual=False,
    ),
}


def released() -> dict[str, NetworkConfig]:
    """Configurations of the released rectified flow, and U-Nets that are told all that a U-Net can be told."""
    rflow, labels = RELEASED["rflow-ct"].networks, RELEASED["mask-diffusion"].networks["unet"]
    assert isinstance(rflow["unet"], UNetConfig)
    return rflow | {"all-unet": rflow["unet"].model_copy(update={"regions": True}), "context-unet": labels}


@dataclass
class Networks:
    """Networks by name and number format, made when they are first asked for."""

    configs: dict[str, NetworkConfig]
    device: torch.device
    _made: dict[tuple[str, torch.dtype], nn.Module] = field(default_factory=dict)

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A network in the format that a bundle in that precision has it in, channels last."""
        if (name, dtype) not in self._made:
            if dtype == torch.float32:
                made = drawn(self.configs[name], self.device)
            else:
                made = lowered(copy.deepcopy(self.get(name)), dtype)
            self._made[name, dtype] = made
        return self._made[name, dtype]

    def forget(self, *names: str) -> None:
        """Let go of networks that no later section needs."""
        self._made = {key: network for key, network in self._made.items() if key[0] not in names}

    def bundle(self, dtype: torch.dtype = torch.float32) -> Bundle:
        """Autoencoder, U-Net and ControlNet as a bundle in memory."""
        return bundle_of({name: self.get(name, dtype) for name in ("autoencoder", "unet", "controlnet")})


def bundle_of(networks: dict[str, nn.Module]) -> Bundle:
    """Networks as a bundle without limits worth the name."""
    limits = Limits(min_spacing_mm=(0.1, 0.1, 0.1), max_spacing_mm=(50, 50, 50), max_size=(1024, 1024, 1024))
    info = BundleInfo(
        name="random", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec(), limits=limits
    )
    return Bundle.of(info, networks)


def drawn(config: NetworkConfig, device: torch.device, seed: int = 0) -> nn.Module:
    """A network with every weight drawn: none zero, norms far from the identity, activations of order one."""
    with torch.device("meta"):
        network = build_network(config)
    network = network.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and not name.endswith("embedding.weight"):
            parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            is_bias = name.endswith("bias")
            parameter.normal_(mean=0.0 if is_bias else 1.0, std=0.3, generator=generator)
    return network.to(memory_format=torch.channels_last_3d)


def normal(*shape: int, device: torch.device, seed: int = 1) -> Tensor:
    """Standard normal numbers, channels last where they are of five dimensions; the same on every device."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x


def bits_of(config: Any, latent: int, device: torch.device) -> Tensor:
    """Label bits at the size of the volume, as many ones as zeros."""
    size = [latent * config.condition_factor] * 3
    generator = torch.Generator(device).manual_seed(2)
    shape = (1, config.condition_channels, *size)
    return torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.uint8).float()


def conditions_of(config: UNetConfig, device: torch.device) -> dict[str, Tensor]:
    """All that a U-Net is told, by our names."""
    told: dict[str, Tensor] = {}
    if config.regions:
        told["top_region"], told["bottom_region"] = 100 * torch.eye(4)[[1]], 100 * torch.eye(4)[[2]]
    if config.spacing:
        told["spacing"] = 100 * torch.tensor([[0.75, 0.75, 1.25]])
    if config.num_modalities is not None:
        told["modality"] = torch.tensor([1])
    if config.context_channels is not None:
        told["context"] = torch.linspace(-1, 1, config.context_channels)[None, None]
    return {name: value.to(device) for name, value in told.items()}


def residuals_of(config: BackboneConfig, latent: int, device: torch.device) -> Residuals:
    """Residuals of order one for every skip connection and the middle."""
    sizes, size = [latent], latent
    for level, repeats in enumerate(config.num_res_blocks):
        sizes += [size] * repeats
        if level < len(config.channels) - 1:
            size //= 2
            sizes.append(size)
    widths = zip(config.skip_channels, sizes, strict=True)
    skips = tuple(normal(1, width, n, n, n, device=device, seed=10 + i) for i, (width, n) in enumerate(widths))
    return Residuals(skips, normal(1, config.channels[-1], size, size, size, device=device, seed=9))


# MONAI ----------------------------------------------------------------------------------------------------------------


def monai_of(network: Any) -> nn.Module:
    """MONAI's network of the same configuration with the same weights, laid out as MONAI lays them out.

    Raises ImportError where MONAI is not installed.
    """
    config, device = network.config, next(network.parameters()).device
    with torch.device("meta"):
        theirs = _built(config, has_flash=device.type == "cuda")
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in to_upstream(network).items()}
    theirs.load_state_dict(state, assign=True)
    return theirs.eval().requires_grad_(False)


def _built(config: NetworkConfig, has_flash: bool) -> nn.Module:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
    from monai.networks.nets import DiffusionModelUNet

    if isinstance(config, AutoencoderConfig):
        return AutoencoderKlMaisi(
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
    shared: dict[str, Any] = {
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
        "use_flash_attention": has_flash,
    }
    if isinstance(config, ControlNetConfig):
        return ControlNetMaisi(
            **shared,
            num_channels=config.channels,
            conditioning_embedding_in_channels=config.condition_channels,
            conditioning_embedding_num_channels=config.embedding_widths,
        )
    if config.context_channels is not None:
        return DiffusionModelUNet(
            **shared, channels=config.channels, out_channels=config.out_channels, upcast_attention=True
        )
    return DiffusionModelUNetMaisi(
        **shared,
        num_channels=config.channels,
        out_channels=config.out_channels,
        include_top_region_index_input=config.regions,
        include_bottom_region_index_input=config.regions,
        include_spacing_input=config.spacing,
    )


def ask_monai(unet: nn.Module, x: Tensor, t: Tensor, conditions: dict[str, Tensor], residuals: Any = None) -> Tensor:
    """MONAI's prediction for inputs under our names; residuals as (skips, middle)."""
    theirs = {
        "top_region": "top_region_index_tensor",
        "bottom_region": "bottom_region_index_tensor",
        "spacing": "spacing_tensor",
        "modality": "class_labels",
        "context": "context",
    }
    arguments: dict[str, Any] = {theirs[name]: value for name, value in conditions.items()}
    if residuals is not None:
        arguments["down_block_additional_residuals"], arguments["mid_block_additional_residual"] = residuals
    found: Tensor = unet(x, t, **arguments)
    return found


@contextmanager
def as_released(autoencoder: nn.Module, dtype: torch.dtype, splits: int) -> Iterator[None]:
    """Within, MONAI's autoencoder computes as released in that format: autocast in half precision, and so many splits.

    Its norms give float16 in float16 only; in other formats that raises an error.
    """
    for module in autoencoder.modules():
        if hasattr(module, "num_splits"):
            module.num_splits = splits
        if hasattr(module, "norm_float16"):
            module.norm_float16 = dtype == torch.float16
    with autocast(next(autoencoder.parameters()).device, dtype):
        yield


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Torch's autocast; nothing in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def decode_in_windows(autoencoder: nn.Module, latent: Tensor) -> Callable[[], Tensor]:
    """A decode of the latent in overlapping windows, blended, as released; not equal to a decode of the whole."""
    from monai.inferers import SlidingWindowInferer

    window = min(WINDOW, latent.shape[2])
    inferer = SlidingWindowInferer([window] * 3, sw_batch_size=1, overlap=OVERLAP, mode="gaussian", device="cpu")
    return lambda: inferer(latent, autoencoder.decode_stage_2_outputs)
