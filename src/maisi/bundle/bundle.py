"""A model on disk: networks, noise schedule, scale factor and what they were trained for.

A bundle is a folder: `bundle.yaml` (a `BundleInfo`), for each network `<name>/config.yaml` and
`<name>/model.safetensors`, `MODEL_CARD.md`, `LICENSE`, and `checksums.json` with the SHA-256 of every file. Networks
that make CTs are named by their kind: autoencoder, unet, controlnet; so is a segmenter, which tells the structures of a
CT. Others have names of their own, such as label_autoencoder, and `bundle.yaml` tells their kind.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.contents import (
    check_sum,
    misfit,
    read_checksums,
    read_weights,
    read_yaml,
    stored_dtypes,
    write_checksums,
    write_weights,
    write_yaml,
)
from maisi.bundle.places import BUNDLE_INFO, find_bundle
from maisi.bundle.warm import warm_or
from maisi.diffusion.scheduler import DDPM, DDPMConfig, NoiseScheduler, RectifiedFlow, RectifiedFlowConfig
from maisi.errors import InvalidBundleError, InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.build import NetworkConfig, build_network
from maisi.networks.controlnet import ControlNet, ControlNetConfig, check_levels
from maisi.networks.segmenter import SegmenterConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.shapes import Frozen, Size3, Spacing3, in_words
from maisi.splitting.precision import kept_in_float32
from maisi.storage.atomic import write_directory

FORMAT_VERSION = 1

Kind = Literal["autoencoder", "unet", "controlnet", "segmenter"]

KINDS: dict[Kind, type[NetworkConfig]] = {
    "autoencoder": AutoencoderConfig,
    "unet": UNetConfig,
    "controlnet": ControlNetConfig,
    "segmenter": SegmenterConfig,
}
"""The kinds of network, which are also the names of those that make CTs, and of the segmenter."""

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]

Condition = Literal["labels", "region", "spacing", "modality"]
"""What the networks that make CTs are told of one."""

_CARD, _LICENCE = "MODEL_CARD.md", "LICENSE"
_CONFIG, _WEIGHTS = "config.yaml", "model.safetensors"


class DDPMSpec(Frozen):
    """A `DDPM` schedule in a file."""

    kind: Literal["ddpm"] = "ddpm"
    config: DDPMConfig = DDPMConfig()


class RectifiedFlowSpec(Frozen):
    """A `RectifiedFlow` schedule in a file."""

    kind: Literal["rectified_flow"] = "rectified_flow"
    config: RectifiedFlowConfig = RectifiedFlowConfig()


SchedulerSpec = Annotated[DDPMSpec | RectifiedFlowSpec, Field(discriminator="kind")]


def build_scheduler(spec: DDPMSpec | RectifiedFlowSpec) -> NoiseScheduler:
    """The noise schedule that a file describes."""
    return DDPM(spec.config) if isinstance(spec, DDPMSpec) else RectifiedFlow(spec.config)


class Limits(Frozen):
    """What a bundle was trained for; more may be tried, but is not promised."""

    min_spacing_mm: Spacing3 = (0.5, 0.5, 0.5)
    max_spacing_mm: Spacing3 = (5.0, 5.0, 5.0)
    max_size: Size3 = (512, 512, 768)
    min_fov_mm: Spacing3 | None = None
    max_fov_mm: Spacing3 | None = None
    regions: tuple[Literal["head", "chest", "abdomen", "lower"], ...] = ("head", "chest", "abdomen", "lower")
    modalities: tuple[str, ...] = ("ct",)
    unlabelled: bool = True  # whether the U-Net alone, without a ControlNet, makes images
    held_to: tuple[str, ...] | None = None  # structures and groups whose HU samples must show; None: all of them

    @model_validator(mode="after")
    def _ordered(self) -> "Limits":
        for low, high in ((self.min_spacing_mm, self.max_spacing_mm), (self.min_fov_mm, self.max_fov_mm)):
            if low and high and any(a > b for a, b in zip(low, high, strict=True)):
                raise ValueError(f"least values {low} are above the greatest {high}")
        if min(self.min_spacing_mm) <= 0 or min(self.max_size) < 1:
            raise ValueError("spacing and size must be positive")
        return self

    @field_validator("held_to")
    @classmethod
    def _known(cls, held_to: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in held_to or ():
            load_vocabulary().members(name)
        return held_to

    def violations(self, size: Size3, spacing_mm: Spacing3) -> list[str]:
        """What of a volume lies outside the limits, a sentence for each limit; none when all is well."""
        fov_mm = tuple(n * s for n, s in zip(size, spacing_mm, strict=True))
        asked = (
            ("spacing", spacing_mm, "below", self.min_spacing_mm, " mm"),
            ("spacing", spacing_mm, "above", self.max_spacing_mm, " mm"),
            ("size", size, "above", self.max_size, ""),
            ("field of view", fov_mm, "below", self.min_fov_mm, " mm"),
            ("field of view", fov_mm, "above", self.max_fov_mm, " mm"),
        )
        return [
            f"{what} {in_words(values, 4)}{unit} is {side} the {in_words(limit, 4)}{unit} that the bundle was trained "
            "for"
            for what, values, side, limit, unit in asked
            if limit is not None and any(_beyond(v, at, side) for v, at in zip(values, limit, strict=True))
        ]


def _beyond(value: float, limit: float, side: str) -> bool:
    """True where a value is on that side of a limit by more than rounding."""
    return (value - limit if side == "above" else limit - value) > 1e-6 * limit


class LabelGeneratorInfo(Frozen):
    """What the networks of a bundle that draw label maps were trained for.

    `sized` are the structures whose sizes they are told, in their order, `lesions` those of them that grow in something
    else and were learned. With `open_sizes` a size may be left open.
    """

    autoencoder: Name = "label_autoencoder"
    unet: Name = "label_unet"
    size: Size3  # voxels of every map
    spacing_mm: Spacing3
    scale_factor: float = Field(default=1.0, gt=0)
    scheduler: SchedulerSpec
    channels: tuple[int, ...] = ()  # the id that each logit stands for; without, those of the released one
    sized: tuple[str, ...]
    lesions: tuple[str, ...] = ()
    open_sizes: bool = False


class BundleInfo(Frozen):
    """What `bundle.yaml` says."""

    format_version: int = FORMAT_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = "1"
    description: str = ""
    licence: str
    vocabulary_version: str
    scale_factor: float = Field(default=1.0, gt=0)
    scheduler: SchedulerSpec | None = None
    limits: Limits = Limits()
    controlnet_scale: float = Field(default=1.0, ge=0)  # of the residuals, where a request does not say
    shown_as: dict[str, str] = Field(default_factory=dict)  # group -> the one structure that the ControlNet sees for it
    networks: dict[Name, Kind] = Field(default_factory=dict)  # of the networks that are not named by their kind
    classes: dict[int, str] = Field(default_factory=dict)  # id -> name of structures that the vocabulary lacks
    dropped: tuple[Condition, ...] = ()  # what training left out at times, so that guidance can
    tumours: tuple[str, ...] = ()  # names of those that it was trained to show, and does
    label_generator: LabelGeneratorInfo | None = None

    @field_validator("networks")
    @classmethod
    def _kinds_keep_their_names(cls, networks: dict[str, Kind]) -> dict[str, Kind]:
        for name, kind in networks.items():
            if name in KINDS and name != kind:
                raise ValueError(f"a network named {name} is of that kind, not a {kind}")
        return networks

    @field_validator("classes")
    @classmethod
    def _classes_are_new(cls, classes: dict[int, str]) -> dict[int, str]:
        for id, name in classes.items():
            check_class(id, name)
        if len(set(classes.values())) < len(classes):
            raise ValueError(f"classes have one name each, not {', '.join(sorted(classes.values()))}")
        return classes

    @model_validator(mode="after")
    def _known_format(self) -> "BundleInfo":
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"bundle format {self.format_version} is unknown to this version of maisi, which reads {FORMAT_VERSION}"
            )
        return self


def check_class(id: int, name: str) -> None:
    """Raise `ValueError` where a class would be a structure of the vocabulary under another id or name.

    Ids are 1 to 255, which fit the eight bits that a ControlNet reads; those that the vocabulary reserves without
    filling them are free.
    """
    vocabulary = load_vocabulary()
    if not 1 <= id <= 255:
        raise ValueError(f"class {name!r} has id {id}; accepted: 1 to 255")
    if not name.strip():
        raise ValueError(f"the class of id {id} has no name")
    if id in vocabulary.ids and not vocabulary.structure(id).is_dummy:
        raise ValueError(f"id {id} of class {name!r} is the vocabulary's {vocabulary.name(id)!r}; accepted: a free id")
    if vocabulary.knows(name):
        raise ValueError(f"class {name!r} is in the vocabulary, as id {vocabulary.find(name)}; accepted: that id")


@dataclass(frozen=True, eq=False)
class Bundle:
    """Networks that belong together; each is loaded when it is first used, ready for inference.

    `scale_factor` multiplies latents of the autoencoder to what the U-Net sees. A network that the bundle lacks raises
    `InvalidBundleError` when it is asked for; `kinds` tells what there is. `autoencoder`, `unet` and `controlnet` are
    those that make CTs.
    """

    info: BundleInfo
    configs: Mapping[str, NetworkConfig]
    load: Callable[[str], nn.Module]
    path: Path | None = None
    model_card: str = ""
    licence_text: str = ""
    _loaded: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_names(self.info, self.configs)
        _check_parts(self.info, self.configs)

    @classmethod
    def of(
        cls, info: BundleInfo, networks: Mapping[str, nn.Module], *, model_card: str = "", licence_text: str = ""
    ) -> "Bundle":
        """A bundle of networks in memory, by name; those that make CTs are autoencoder, unet, controlnet."""
        configs = {name: cast(NetworkConfig, network.config) for name, network in networks.items()}
        others = {name: kind_of(config) for name, config in configs.items() if name not in KINDS}
        info = info.model_copy(update={"networks": info.networks | others})
        return cls(info, configs, dict(networks).__getitem__, model_card=model_card, licence_text=licence_text)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the networks in this bundle."""
        return tuple(self.configs)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each network in this bundle, by its name."""
        return {name: kind_of(config) for name, config in self.configs.items()}

    def network(self, name: str) -> nn.Module:
        """The network of this name, loaded once; raises `InvalidBundleError` telling the names that there are."""
        if name not in self.configs:
            raise InvalidBundleError(f"bundle {self.name!r} has no {name}; it holds {', '.join(self.names)}")
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    @property
    def scale_factor(self) -> float:
        return self.info.scale_factor

    @property
    def limits(self) -> Limits:
        return self.info.limits

    @property
    def autoencoder(self) -> Autoencoder:
        return cast(Autoencoder, self.network("autoencoder"))

    @property
    def unet(self) -> DenoisingUNet:
        return cast(DenoisingUNet, self.network("unet"))

    @property
    def controlnet(self) -> ControlNet:
        return cast(ControlNet, self.network("controlnet"))

    @cached_property
    def scheduler(self) -> NoiseScheduler:
        if self.info.scheduler is None:
            raise InvalidBundleError(f"bundle {self.name!r} has no noise schedule; it holds {', '.join(self.names)}")
        return build_scheduler(self.info.scheduler)

    @property
    def size_multiple(self) -> int:
        """Every axis of a generated volume must be a multiple of this."""
        multiple = 1
        if "autoencoder" in self.configs:
            multiple *= cast(AutoencoderConfig, self.configs["autoencoder"]).factor
        if "unet" in self.configs:
            multiple *= cast(UNetConfig, self.configs["unet"]).size_multiple
        return multiple

    def describe(self) -> dict[str, Any]:
        """All there is to say about the bundle in plain values, without loading a network."""
        about = self.info.model_dump(mode="json")
        about |= {"path": str(self.path) if self.path else None, "size_multiple": self.size_multiple}
        about["networks"] = {name: self._describe_network(name) for name in self.names}
        return about

    def verify(self) -> None:
        """Read every file on disk and compare its checksum; raises `InvalidBundleError` naming the first broken one."""
        if self.path is not None:
            checksums = read_checksums(self.path)
            for name in checksums:
                check_sum(self.path, name, checksums)

    def _describe_network(self, name: str) -> dict[str, Any]:
        config = self.configs[name]
        num_parameters = sum(p.numel() for p in _on_meta(config).parameters())
        about: dict[str, Any] = {"kind": kind_of(config), "num_parameters": num_parameters}
        if self.path is not None:
            weights = self.path / name / _WEIGHTS
            about |= {"num_bytes": weights.stat().st_size, "stored_as": ", ".join(stored_dtypes(weights))}
        return about | {"config": config.model_dump(mode="json")}


def kind_of(config: NetworkConfig) -> Kind:
    """The kind of network that a configuration describes."""
    return next(kind for kind, config_class in KINDS.items() if isinstance(config, config_class))


def load_bundle(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    narrow_in_float32: bool = False,
) -> Bundle:
    """A bundle by packaged name or path; its networks come to `device` as `dtype` when they are first used.

    With `narrow_in_float32` the convolutions of few channels keep float32, as `splitting.precision` describes; such a
    network is to be called on a `SlabTensor`, or within `torch.autocast`.

    Configurations and checksums are checked now, the weights' checksum when they are read. Raises `InvalidBundleError`
    for a bundle that is unknown, incomplete, altered or of another architecture. Within `WarmBundles.for_work` a
    bundle that was loaded before comes with its networks.
    """
    folder = find_bundle(name_or_path)
    settings = (str(device), dtype, narrow_in_float32)
    return warm_or(folder, settings, lambda: _opened(folder, device, dtype, narrow_in_float32))


def _opened(folder: Path, device: str | torch.device, dtype: torch.dtype, narrow_in_float32: bool) -> Bundle:
    checksums = read_checksums(folder)
    info = read_yaml(check_sum(folder, BUNDLE_INFO, checksums), BundleInfo)
    configs: dict[str, NetworkConfig] = {}
    present: dict[str, Kind] = {kind: kind for kind in KINDS if (folder / kind).is_dir()}
    for name, kind in (present | info.networks).items():
        configs[name] = read_yaml(_listed(folder, f"{name}/{_CONFIG}", checksums), KINDS[kind])

    def load(name: str) -> nn.Module:
        return _load_network(folder, name, configs[name], checksums, device, dtype, narrow_in_float32)

    card, licence = (_listed(folder, name, checksums).read_text(encoding="utf-8") for name in (_CARD, _LICENCE))
    return Bundle(info, configs, load, folder, card, licence)


def save_bundle(
    bundle: Bundle, path: str | Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> Path:
    """Write a bundle to a new folder, weights stored as `dtype`, and give its path; the folder appears whole or not.

    The same bundle gives the same bytes. Raises `InvalidBundleError` where the folder exists, `StorageError` where the
    disk is full.
    """
    networks = {name: bundle.network(name) for name in bundle.names}
    num_bytes = sum(t.numel() * dtype.itemsize for n in networks.values() for t in n.state_dict().values())
    path = Path(path)
    if path.exists() and not overwrite:
        raise InvalidBundleError(f"{path} exists already; accepted: another place, or --overwrite")
    with write_directory(path, overwrite=overwrite, num_bytes=num_bytes) as folder:
        fill_bundle(bundle, folder, dtype)
    return path


def fill_bundle(bundle: Bundle, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a bundle into an empty folder, weights stored as `dtype`, checksums last."""
    write_yaml(folder / BUNDLE_INFO, bundle.info)
    (folder / _CARD).write_text(bundle.model_card or f"# {bundle.name}\n", encoding="utf-8")
    (folder / _LICENCE).write_text(bundle.licence_text or f"{bundle.info.licence}\n", encoding="utf-8")
    for name in bundle.names:
        (folder / name).mkdir()
        write_yaml(folder / name / _CONFIG, bundle.configs[name])
        write_weights(folder / name / _WEIGHTS, bundle.network(name).state_dict(), dtype)
    write_checksums(folder)


def _listed(folder: Path, name: str, checksums: Mapping[str, str]) -> Path:
    if not (folder / name).is_file():
        raise InvalidBundleError(f"{folder} is incomplete; missing: {name}")
    return check_sum(folder, name, checksums)


def _load_network(
    folder: Path,
    name: str,
    config: NetworkConfig,
    checksums: Mapping[str, str],
    device: str | torch.device,
    dtype: torch.dtype,
    narrow_in_float32: bool,
) -> nn.Module:
    path = _listed(folder, f"{name}/{_WEIGHTS}", checksums)
    network = _on_meta(config)
    state = read_weights(path, dtype, device, kept_in_float32(network) if narrow_in_float32 else ())
    wrong = misfit(
        {key: tensor.shape for key, tensor in state.items()},
        {key: tensor.shape for key, tensor in network.state_dict().items()},
    )
    if wrong:
        raise InvalidBundleError(f"{path} does not fit the {name} of {_CONFIG}: {wrong}")
    network.load_state_dict(state, assign=True)
    # channels last: convolutions of a CPU are up to several times faster so, and the result is the same to rounding
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def _on_meta(config: NetworkConfig) -> nn.Module:
    """The network without its weights: building it takes neither memory nor random numbers."""
    with torch.device("meta"):
        return build_network(config)


def _check_names(info: BundleInfo, configs: Mapping[str, NetworkConfig]) -> None:
    """Raise `InvalidBundleError` where a network's name does not say its kind, nor `networks` of the bundle."""
    known = ", ".join(KINDS)
    if not configs:
        raise InvalidBundleError(f"bundle {info.name!r} holds no network; accepted: {known}, and others by name")
    for name, config in configs.items():
        if not re.fullmatch(NAME, name):
            raise InvalidBundleError(f"{name!r} names no network; accepted: small letters, digits and _")
        told, kind = info.networks.get(name, name), kind_of(config)
        if told not in KINDS:
            raise InvalidBundleError(
                f"bundle {info.name!r} holds {name}, but does not say its kind; accepted: {known}, or a name listed "
                "under networks with its kind"
            )
        if told != kind:
            raise InvalidBundleError(f"{name} of bundle {info.name!r} is a network of kind {kind}, not {told}")
    missing = [name for name in info.networks if name not in configs]
    if missing:
        raise InvalidBundleError(f"bundle {info.name!r} lists networks that it does not hold: {', '.join(missing)}")


def _check_parts(info: BundleInfo, configs: Mapping[str, NetworkConfig]) -> None:
    """Raise `InvalidBundleError` where the networks that make CTs do not belong together."""
    _check_label_generator(info, configs)
    autoencoder, unet, controlnet = (configs.get(kind) for kind in ("autoencoder", "unet", "controlnet"))
    if isinstance(unet, UNetConfig):
        if info.scheduler is None:
            raise InvalidBundleError(f"bundle {info.name!r} has a unet, but no scheduler to sample with")
        if isinstance(autoencoder, AutoencoderConfig) and unet.in_channels != autoencoder.latent_channels:
            raise InvalidBundleError(
                f"bundle {info.name!r}: the unet reads {unet.in_channels} channels, "
                f"the autoencoder's latent has {autoencoder.latent_channels}"
            )
    if isinstance(controlnet, ControlNetConfig):
        if not isinstance(unet, UNetConfig):
            raise InvalidBundleError(f"bundle {info.name!r} has a controlnet, but no unet for it to steer")
        if isinstance(autoencoder, AutoencoderConfig) and controlnet.condition_factor != autoencoder.factor:
            raise InvalidBundleError(
                f"bundle {info.name!r}: the controlnet shrinks labels {controlnet.condition_factor} times, "
                f"the autoencoder volumes {autoencoder.factor} times"
            )
        try:
            check_levels(unet, controlnet)
        except InvalidRequestError as error:
            raise InvalidBundleError(f"bundle {info.name!r}: {error}") from error


def _check_label_generator(info: BundleInfo, configs: Mapping[str, NetworkConfig]) -> None:
    """Raise `InvalidBundleError` where the networks that draw label maps are missing or do not belong together."""
    told = info.label_generator
    if told is None:
        return
    autoencoder, unet = configs.get(told.autoencoder), configs.get(told.unet)
    if not isinstance(autoencoder, AutoencoderConfig) or not isinstance(unet, UNetConfig):
        raise InvalidBundleError(
            f"bundle {info.name!r} draws label maps with {told.autoencoder} and {told.unet}, autoencoder and unet; it "
            f"holds {', '.join(configs)}"
        )
    if unet.in_channels != autoencoder.latent_channels:
        raise InvalidBundleError(
            f"bundle {info.name!r}: the {told.unet} reads {unet.in_channels} channels, the {told.autoencoder}'s latent "
            f"has {autoencoder.latent_channels}"
        )
    if unet.context_channels != len(told.sized):
        raise InvalidBundleError(
            f"bundle {info.name!r}: the {told.unet} is told {unet.context_channels} sizes, but {len(told.sized)} "
            "structures are named"
        )
