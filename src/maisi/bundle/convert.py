"""Upstream's `.pt` checkpoints made into a bundle."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.slots import full_volumes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import (
    Bundle,
    BundleInfo,
    Condition,
    DDPMSpec,
    LabelGeneratorInfo,
    Limits,
    RectifiedFlowSpec,
    save_bundle,
)
from maisi.bundle.upstream import Checkpoint, identify, load_upstream, read_checkpoint
from maisi.errors import InvalidBundleError
from maisi.networks.build import NetworkConfig, build_network
from maisi.networks.unet import DenoisingUNet
from maisi.shapes import Frozen
from maisi.storage.sums import sha256

logger = logging.getLogger(__name__)

LICENCE = "that of the converted checkpoints"


class Model(Frozen):
    """What a model's checkpoints do not say: its noise schedule and what it was trained for."""

    scheduler: DDPMSpec | RectifiedFlowSpec
    limits: Limits
    dropped: tuple[Condition, ...] = ()
    tumours: tuple[str, ...] = ()


# Sizes, spacings and fields of view that upstream's own inference accepts.
_CT_LIMITS = Limits(
    min_spacing_mm=(0.5, 0.5, 0.5),
    max_spacing_mm=(3.0, 3.0, 5.0),
    max_size=(512, 512, 768),
    min_fov_mm=(256.0, 256.0, 64.0),
)
# Upstream trains the U-Net without labels, and with one modality in ten dropped.
_DROPPED: tuple[Condition, ...] = ("labels", "modality")
_TUMOURS = ("lung tumor", "pancreatic tumor", "hepatic tumor", "colon cancer primaries", "bone lesion")  # the paper's
_MASK_LIMITS = Limits(min_spacing_mm=(1.5, 1.5, 1.5), max_spacing_mm=(1.5, 1.5, 1.5), max_size=(256, 256, 256))

MODELS = {
    "ddpm-ct": Model(scheduler=DDPMSpec(), limits=_CT_LIMITS, dropped=("labels",), tumours=_TUMOURS),
    "rflow-ct": Model(scheduler=RectifiedFlowSpec(), limits=_CT_LIMITS, dropped=_DROPPED, tumours=_TUMOURS),
    "mask": Model(scheduler=DDPMSpec(), limits=_MASK_LIMITS),
}
_MODEL_OF_RELEASE = {"mask-autoencoder": "mask", "mask-diffusion": "mask"}


@dataclass(frozen=True)
class _Part:
    """One checkpoint, recognised."""

    path: Path
    checkpoint: Checkpoint
    kind: str
    config: NetworkConfig
    models: frozenset[str]


def convert(
    checkpoints: Sequence[str | Path],
    to: str | Path,
    *,
    name: str | None = None,
    model: str | None = None,
    configs: Mapping[str, NetworkConfig] | None = None,
    scale_factor: float | None = None,
    licence: str = LICENCE,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """The folder of a bundle made of upstream checkpoints, see `assemble`; it appears whole or not at all."""
    if Path(to).exists() and not overwrite:
        raise InvalidBundleError(f"{to} exists already; accepted: another place, or --overwrite")
    bundle = assemble(
        checkpoints,
        name=name or Path(to).resolve().name,
        model=model,
        configs=configs,
        scale_factor=scale_factor,
        licence=licence,
    )
    return save_bundle(bundle, to, dtype=dtype, overwrite=overwrite)


def assemble(
    checkpoints: Sequence[str | Path],
    *,
    name: str,
    model: str | None = None,
    configs: Mapping[str, NetworkConfig] | None = None,
    scale_factor: float | None = None,
    licence: str = LICENCE,
) -> Bundle:
    """The bundle that upstream checkpoints make: one of an autoencoder, a U-Net, a ControlNet, or several.

    What each is shows in its tensors; `configs` by kind describe networks of other sizes than the released ones, and
    `model` (a key of `MODELS`) then says how they are sampled. `scale_factor` comes from the U-Net's checkpoint unless
    given. Raises `InvalidBundleError` for a checkpoint that is foreign, given twice or of another model than the rest.
    """
    if not checkpoints:
        raise InvalidBundleError("no checkpoint to convert; accepted: .pt files of an autoencoder, unet or controlnet")
    if model is not None and model not in MODELS:
        raise InvalidBundleError(f"unknown model {model!r}; accepted: {', '.join(MODELS)}")
    parts = [_recognise(Path(path), configs) for path in checkpoints]
    _check_distinct(parts)
    model = _common_model(parts, model)

    networks = {}
    for part in sorted(parts, key=lambda part: ("autoencoder", "unet", "controlnet").index(part.kind)):
        with torch.device("meta"):
            network = build_network(part.config)
        try:
            load_upstream(network, part.checkpoint.state)
        except InvalidBundleError as error:
            raise InvalidBundleError(f"{part.path}: {error}") from error
        networks[part.kind] = network.eval().requires_grad_(False)
        logger.info("%s is the %s of %s", part.path.name, part.kind, model or "any model")

    unet = next((part for part in parts if part.kind == "unet"), None)
    factor, scheduler = _scale_factor(unet, scale_factor), _scheduler(unet, model)
    info = BundleInfo(
        name=name,
        description=f"Converted from upstream checkpoints ({model or ', '.join(networks)})",
        licence=licence,
        vocabulary_version=load_vocabulary().version,
        scale_factor=factor,
        scheduler=scheduler,
        limits=MODELS[model].limits if model else Limits(),
        dropped=MODELS[model].dropped if model else (),
        tumours=MODELS[model].tumours if model and "controlnet" in networks else (),
        label_generator=_label_generator(networks, factor, scheduler),
    )
    return Bundle.of(info, networks, model_card=_card(info, parts))


def _recognise(path: Path, configs: Mapping[str, NetworkConfig] | None) -> _Part:
    checkpoint = read_checkpoint(path)
    if configs is not None:
        kind = _kind_of(checkpoint.state)
        if kind not in configs:
            raise InvalidBundleError(f"{path} looks like a {kind}; configurations were given for: {', '.join(configs)}")
        return _Part(path, checkpoint, kind, configs[kind], frozenset(MODELS))
    try:
        identity = identify(checkpoint.state)
    except InvalidBundleError as error:
        raise InvalidBundleError(f"{path}: {error}") from error
    models = frozenset(_MODEL_OF_RELEASE.get(release, release) for release in identity.models)
    return _Part(path, checkpoint, identity.network, identity.config, models)


def _kind_of(state: Mapping[str, Tensor]) -> str:
    """Which network a state dict is of, by the one part that only this network has."""
    if any(name.startswith("quant_conv_mu.") for name in state):
        return "autoencoder"
    if any(name.startswith("controlnet_cond_embedding.") for name in state):
        return "controlnet"
    return "unet"


def _check_distinct(parts: Sequence[_Part]) -> None:
    for i, part in enumerate(parts):
        for other in parts[:i]:
            if other.kind == part.kind:
                raise InvalidBundleError(f"{other.path} and {part.path} are both an {part.kind}; give one of each kind")


def _common_model(parts: Sequence[_Part], asked: str | None) -> str | None:
    """The model that all parts belong to; None for a lone autoencoder that serves several."""
    common = frozenset({asked} if asked else MODELS)
    for part in parts:
        common &= part.models
    if not common:
        found = "; ".join(
            f"{part.path.name} is the {part.kind} of {' or '.join(sorted(part.models))}" for part in parts
        )
        raise InvalidBundleError(f"the checkpoints are not of one model{f' {asked}' if asked else ''}: {found}")
    if len(common) == 1:
        return next(iter(common))
    if any(part.kind == "unet" for part in parts):
        named = " or ".join(sorted(common))
        raise InvalidBundleError(f"a unet of another size needs its model named; accepted: --model {named}")
    return None


def _scale_factor(unet: _Part | None, asked: float | None) -> float:
    """1 / (standard deviation of the latents that the U-Net was trained on)."""
    if asked is not None:
        return asked
    if unet is None:
        return 1.0
    if unet.checkpoint.scale_factor is None:
        raise InvalidBundleError(f"{unet.path} does not say its scale_factor; accepted: --scale-factor")
    return unet.checkpoint.scale_factor


def _scheduler(unet: _Part | None, model: str | None) -> DDPMSpec | RectifiedFlowSpec | None:
    if unet is None or model is None:
        return None
    spec, num_train_steps = MODELS[model].scheduler, unet.checkpoint.num_train_steps
    if num_train_steps is None:
        return spec
    return spec.model_copy(update={"config": spec.config.model_copy(update={"num_train_steps": num_train_steps})})


def _label_generator(
    networks: Mapping[str, nn.Module], scale_factor: float, scheduler: DDPMSpec | RectifiedFlowSpec | None
) -> LabelGeneratorInfo | None:
    """What the networks of the mask model were trained for; None where these are others, or not both."""
    unet = networks.get("unet")
    sized = tuple(full_volumes())
    if scheduler is None or "autoencoder" not in networks or not isinstance(unet, DenoisingUNet):
        return None
    if unet.config.context_channels != len(sized):
        return None
    lesions = {load_vocabulary().name(id) for id in lesion_ids(load_vocabulary())}
    return LabelGeneratorInfo(
        autoencoder="autoencoder",
        unet="unet",
        size=_MASK_LIMITS.max_size,
        spacing_mm=_MASK_LIMITS.min_spacing_mm,
        scale_factor=scale_factor,
        scheduler=scheduler,
        sized=sized,
        lesions=tuple(name for name in sized if name in lesions),
    )


def _card(info: BundleInfo, parts: Sequence[_Part]) -> str:
    rows = "\n".join(f"| {part.kind} | {part.path.name} | {sha256(part.path)} |" for part in parts)
    return (
        f"# {info.name}\n\n{info.description}. Weights are those of the checkpoints below, under other names; their\n"
        f"licence and their makers' statements apply.\n\n"
        f"| network | checkpoint | SHA-256 |\n|---|---|---|\n{rows}\n\n"
        f"Scale factor: {info.scale_factor!r}. Not for diagnosis.\n"
    )
