"""Upstream's checkpoints, in and out: which model a file is, and its tensors under our names.

Upstream is the reference implementation of MAISI (MONAI's networks, NVIDIA's released `.pt` files). Names differ,
shapes do not, and every map here is one to one. Loading is strict; the one thing dropped is `attn.out_proj.*` of a
network that has no such layer: the released DDPM files carry it, though the code that trained them never called it.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, singledispatch
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from maisi.bundle.contents import misfit, some
from maisi.errors import InvalidBundleError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.build import NetworkConfig, build_network
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.discriminator import PatchDiscriminator
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.shapes import Frozen


class Release(Frozen):
    """The networks of a model that upstream published."""

    autoencoder: AutoencoderConfig | None = None
    unet: UNetConfig | None = None
    controlnet: ControlNetConfig | None = None

    @property
    def networks(self) -> dict[str, NetworkConfig]:
        """Configurations of the networks that this model has, by the field's name."""
        configs = {"autoencoder": self.autoencoder, "unet": self.unet, "controlnet": self.controlnet}
        return {name: config for name, config in configs.items() if config is not None}


RELEASED: dict[str, Release] = {
    "ddpm-ct": Release(
        autoencoder=AutoencoderConfig(),
        unet=UNetConfig(regions=True, spacing=True, attention_projection=False),
        controlnet=ControlNetConfig(attention_projection=False),
    ),
    "rflow-ct": Release(
        autoencoder=AutoencoderConfig(),
        unet=UNetConfig(spacing=True, num_modalities=128, resblock_updown=True),
        controlnet=ControlNetConfig(num_modalities=128, resblock_updown=True),
    ),
    "mask-autoencoder": Release(
        autoencoder=AutoencoderConfig(
            in_channels=8, out_channels=125, channels=(32, 64, 128), num_res_blocks=(1, 2, 2), upsampling="transposed"
        )
    ),
    "mask-diffusion": Release(unet=UNetConfig(context_channels=10, middle_sees_residual=False)),
}


# --- names ---

# (ours, theirs): regular expressions, applied from top to bottom to names of our U-Net and ControlNet.
_UNET_NAMES = (
    (r"^conv_in\.", "conv_in.conv."),
    (r"^time_embedding\.", "time_embed."),
    (r"^modality_embedding\.", "class_embedding."),
    (r"^(top|bottom)_region_embedding\.", r"\1_region_index_layer."),
    (r"^spacing_embedding\.", "spacing_layer."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"^(down|up)(_blocks\.\d+)\.blocks\.", r"\1\2.resnets."),
    (r"^middle\.block([12])\.", r"middle_block.resnet_\1."),
    (r"^middle\.", "middle_block."),
    (r"\.downsample\.conv\.", ".downsampler.op.conv."),
    (r"\.upsample\.conv\.", ".upsampler.postconv.conv."),
    (r"\.(down|up)sample\.", r".\1sampler."),
    (r"\.(conv[12])\.", r".\1.conv."),
    (r"\.shortcut\.", ".skip_connection.conv."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.proj_(in|out)\.", r".proj_\1.conv."),
    (r"\.transformer\.", ".transformer_blocks.0."),
    (r"\.self_attention\.", ".attn1."),
    (r"\.cross_attention\.", ".attn2."),
    (r"\.attention\.(query|key|value|out)\.", r".attn.\1."),
    (r"(\.attn[12]?)\.query\.", r"\1.to_q."),
    (r"(\.attn[12]?)\.key\.", r"\1.to_k."),
    (r"(\.attn[12]?)\.value\.", r"\1.to_v."),
    (r"(\.attn[12]?)\.out\.", r"\1.out_proj."),
    (r"\.feed_forward\.", ".ff."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2.conv."),
    (r"^condition_embedding\.convs\.(\d+)\.", r"controlnet_cond_embedding.blocks.\1.conv."),
    (r"^condition_embedding\.conv_(in|out)\.", r"controlnet_cond_embedding.conv_\1.conv."),
    (r"^zero_convs\.0\.", "controlnet_down_blocks.0."),  # upstream wraps every zero convolution but the first
    (r"^zero_convs\.(\d+)\.", r"controlnet_down_blocks.\1.conv."),
    (r"^zero_middle\.", "controlnet_mid_block.conv."),
)


@singledispatch
def upstream_names(network: nn.Module) -> dict[str, str]:
    """Upstream's name for each of a network's tensors: {our name: their name}, one to one."""
    raise TypeError(f"{type(network).__name__} has no counterpart upstream")


@upstream_names.register(DenoisingUNet)
@upstream_names.register(ControlNet)
def _(network: nn.Module) -> dict[str, str]:
    return {name: _renamed(name, _UNET_NAMES) for name in network.state_dict()}


@upstream_names.register
def _(network: Autoencoder) -> dict[str, str]:
    # Upstream numbers the first convolution, the blocks, the last norm and the last convolution in one list.
    rules = [(r"\.(conv[12])\.", r".\1.conv.conv."), (r"\.shortcut\.", ".nin_shortcut.conv.conv.")]
    for name, half in (("encoder", network.encoder), ("decoder", network.decoder)):
        count = len(half.blocks)
        for i in reversed(range(count)):  # from the top: a renamed block must not be renamed again
            rules.append((rf"^{name}\.blocks\.{i}\.", f"{name}.blocks.{i + 1}."))
        rules.append((rf"^({name}\.blocks\.\d+)\.conv\.", r"\1.conv.conv.conv."))
        rules.append((rf"^{name}\.conv_in\.", f"{name}.blocks.0.conv.conv."))
        rules.append((rf"^{name}\.norm_out\.", f"{name}.blocks.{count + 1}."))
        rules.append((rf"^{name}\.conv_out\.", f"{name}.blocks.{count + 2}.conv.conv."))
    rules.append((r"^to_mean\.", "quant_conv_mu.conv."))
    rules.append((r"^to_log_variance\.", "quant_conv_log_sigma.conv."))
    rules.append((r"^from_latent\.", "post_quant_conv.conv."))
    return {name: _renamed(name, rules) for name in network.state_dict()}


@upstream_names.register
def _(network: PatchDiscriminator) -> dict[str, str]:
    last = len(network.convs) - 1
    theirs = ["initial_conv.conv", *(f"{i}.conv" for i in range(last - 1)), "final_conv.conv"]
    return {
        f"convs.{i}.{kind}": f"{theirs[i]}.{kind}"
        for i, conv in enumerate(network.convs)
        for kind, _ in conv.named_parameters()
    }


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# --- tensors ---


def to_upstream(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict under upstream's names (the tensors themselves, not copies)."""
    state = network.state_dict()
    return {theirs: state[ours] for ours, theirs in upstream_names(network).items()}


def load_upstream(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the network the tensors of an upstream state dict; a network on the meta device takes them over, not copies.

    Raises `InvalidBundleError` naming what is missing, unexpected or of another shape.
    """
    names = upstream_names(network)
    expected = _shapes(to_upstream(network))
    state = _without_dead_projections(state, expected)
    wrong = misfit(_shapes(state), expected)
    if wrong:
        raise InvalidBundleError(f"checkpoint does not fit this {type(network).__name__}: {wrong}")
    on_meta = any(parameter.is_meta for parameter in network.parameters())
    network.load_state_dict({ours: state[theirs] for ours, theirs in names.items()}, assign=on_meta)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is: the released models that have this network, and which of their networks it is."""

    models: tuple[str, ...]
    network: str
    config: NetworkConfig


def identify(state: Mapping[str, Tensor]) -> Identity:
    """The released network that a state dict belongs to, by the names and shapes of its tensors.

    The same autoencoder serves several models. Raises `InvalidBundleError` saying how the nearest one differs.
    """
    candidates = [(model, name, config) for model, r in RELEASED.items() for name, config in r.networks.items()]
    differences = []
    for model, name, config in candidates:
        expected = _expected(config)
        shapes = _shapes(_without_dead_projections(state, expected))
        if shapes == expected:
            models = tuple(m for m, r in RELEASED.items() if r.networks.get(name) == config)
            return Identity(models, name, config)
        differences.append((len(shapes.items() ^ expected.items()), f"{name} of {model}", misfit(shapes, expected)))
    _, nearest, wrong = min(differences)
    known = ", ".join(f"{model} {name}" for model, name, _ in candidates)
    raise InvalidBundleError(f"checkpoint is none of {known}; the nearest is the {nearest}, but: {wrong}")


def _without_dead_projections(state: Mapping[str, Tensor], expected: Mapping[str, Size]) -> dict[str, Tensor]:
    """The state without `attn.out_proj.*` of attentions that are expected, but without a projection."""
    attentions = {name.removesuffix("to_q.weight") for name in expected if name.endswith(".attn.to_q.weight")}
    dead = {f"{attention}out_proj.{kind}" for attention in attentions for kind in ("weight", "bias")} - expected.keys()
    return {name: tensor for name, tensor in state.items() if name not in dead}


@cache
def _expected(config: NetworkConfig) -> dict[str, Size]:
    with torch.device("meta"):
        return _shapes(to_upstream(build_network(config)))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in state.items()}


# --- files ---

_WRAPPERS = ("unet_state_dict", "controlnet_state_dict", "autoencoder_state_dict", "state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of an upstream file under upstream's names, and what else it says that matters."""

    state: dict[str, Tensor]
    scale_factor: float | None = None
    num_train_steps: int | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """An upstream `.pt` file, bare or wrapped, on the CPU; only tensors and plain values are read, no code is run.

    Raises `InvalidBundleError` for a file that is missing, damaged, or holds something else than weights.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict) or not content:
        raise InvalidBundleError(f"{path} holds no state dict but {type(content).__name__}")
    wrappers = [key for key in _WRAPPERS if key in content]
    if len(wrappers) > 1:
        raise InvalidBundleError(f"{path} holds {len(wrappers)} state dicts ({', '.join(wrappers)}), not one")
    state = content[wrappers[0]] if wrappers else content
    if not isinstance(state, dict) or not state:
        raise InvalidBundleError(f"{path}: {wrappers[0]} is not a state dict but {type(state).__name__}")
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        expected = "a bare state dict or one under " + ", ".join(_WRAPPERS)
        raise InvalidBundleError(f"{path} has entries that are no tensors ({some(foreign)}); expected {expected}")
    meta = content if wrappers else {}
    steps = _number(meta, "num_train_timesteps")
    return Checkpoint(dict(state), _number(meta, "scale_factor"), None if steps is None else int(steps))


def _load(path: Path) -> object:
    if not path.is_file():
        raise InvalidBundleError(f"no checkpoint at {path}")
    try:
        # A zip archive can be mapped: tensors that are not used never enter memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, ValueError, KeyError) as error:  # torch would advise to trust the file
        accepted = "a .pt file that holds tensors and plain values, nothing else"
        raise InvalidBundleError(f"{path} is damaged or no file of weights only; accepted: {accepted}") from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidBundleError(f"{path} is damaged or no file of weights only: {reason}") from error


def _number(content: Mapping[str, object], key: str) -> float | None:
    value = content.get(key)
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if value is None or isinstance(value, int | float):
        return value
    raise InvalidBundleError(f"{key} of the checkpoint is {type(value).__name__}, not a number")
