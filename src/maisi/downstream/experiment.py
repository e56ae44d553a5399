"""What a downstream experiment is: data, task, split, synthetic data, how a network is trained. Imports no torch."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maisi.bundle.places import packaged_names
from maisi.compute.across import Across
from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen, Size3
from maisi.storage.folders import user_path
from maisi.storage.settings import check_settings, read_settings, with_assignments

ALL: Literal["all"] = "all"
NumReal = Literal["all"] | int

BUNDLE = "bundle"
_PATHS = (
    ("manifest",),
    ("synthetic", "folder"),
    ("synthetic", BUNDLE),
    ("training", "environment"),
    ("training", "templates"),
)


class SplitSettings(Frozen):
    """Who tests, and in how many folds the others are divided; always whole patients."""

    test: Literal["share", "manifest"] = Field(
        default="share", description="share: drawn once; manifest: its splits validation and testing."
    )
    share: float = Field(default=0.2, gt=0, lt=1, description="Of the patients, for testing.")
    folds: int = Field(default=5, ge=2)
    seed: int = Field(default=0, ge=0)


class Regime(Frozen):
    """Trainings with so many real cases, and with so many synthetic ones for each real one."""

    num_real: tuple[NumReal, ...] = (ALL,)
    ratios: tuple[float, ...] = (0, 0.5, 1, 1.5)
    seeds: tuple[int, ...] = (0, 1)

    @model_validator(mode="after")
    def _has_a_baseline(self) -> "Regime":
        if not self.num_real or not self.seeds:
            raise ValueError("num_real and seeds are lists of at least one")
        if 0 not in self.ratios:
            raise ValueError(f"ratios {list(self.ratios)} lack 0, real data only, which the others are compared with")
        if min(self.ratios) < 0 or any(n != ALL and int(n) < 1 for n in self.num_real):
            raise ValueError("ratios are 0 or more, num_real is 'all' or at least 1")
        for name in ("num_real", "ratios", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} names one value twice")
        return self


class SyntheticSettings(Frozen):
    """Where synthetic cases come from.

    paired: CTs generated after label maps of training cases, bent and with their tumours varied. inpaint: CTs of
    training cases with one tumour more. folder: pairs that are there already, or a manifest of them.
    """

    source: Literal["paired", "inpaint", "folder"] = "paired"
    bundle: str = "ct-small"
    folder: Path | None = None
    tumour: str | None = Field(default=None, description="What inpaint puts in.")
    bend: float = Field(default=1.0, ge=0, description="How far label maps are bent; 1 is a person of the same make.")
    strength: float = Field(default=1.0, ge=0, description="How far tumours are varied.")
    levels: Literal["case", "network"] = Field(
        default="case", description="Whose HU the structures of a generated CT have: of the case, or of the network."
    )
    steps: int = Field(default=10, ge=1, description="Steps of the sampler.")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> "SyntheticSettings":
        if (self.source == "folder") != (self.folder is not None):
            raise ValueError("the source 'folder' and the setting folder go together")
        if (self.source == "inpaint") != (self.tumour is not None):
            raise ValueError("the source 'inpaint' and the setting tumour go together")
        return self


_USERS = {
    "environment": ("auto3dseg", "nnunet"),
    "algorithms": ("auto3dseg",),
    "templates": ("auto3dseg",),
    "epochs": ("auto3dseg",),
    "trainer": ("nnunet",),
}
"""The backends that heed a setting of frameworks."""


class TrainingSettings(Frozen):
    """How a segmentation network is trained: by the built-in U-Net, or by a framework in an environment of its own."""

    backend: Literal["builtin", "auto3dseg", "nnunet"] = "builtin"
    environment: Path | None = Field(default=None, description="Virtual environment that Auto3DSeg or nnU-Net is in.")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Of nnU-Net; Auto3DSeg takes a GPU where it finds one."
    )
    algorithms: str = Field(default="segresnet", description="Of Auto3DSeg.")
    templates: Path | None = Field(default=None, description="Folder of Auto3DSeg's algorithm templates.")
    epochs: int | None = Field(
        default=None, ge=1, description="Of Auto3DSeg, over the real cases; without, as many as it chooses."
    )
    trainer: str | None = Field(default=None, description="Class of an nnU-Net trainer.")
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=2, ge=1)
    patch: Size3 = (48, 48, 48)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    learning_rate: float = Field(default=3e-3, gt=0)
    balance: float = Field(default=0.3, ge=0, description="Weight of the voxels of classes besides that of all voxels.")
    coordinates: bool = Field(default=False, description="Show the network where in the volume a patch is.")
    real_last: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the steps, the last ones, that see real cases alone."
    )
    flips: bool = Field(default=False, description="Mirror left and right; wrong where structures have sides.")

    @field_validator("patch")
    @classmethod
    def _halves(cls, patch: Size3) -> Size3:
        if any(n < 8 or n % 8 for n in patch):
            raise ValueError(f"patch {patch} is not of multiples of 8")
        return patch

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels {list(channels)} make no U-Net; accepted: at least two of 1 or more")
        return channels

    @model_validator(mode="after")
    def _patch_has_levels(self) -> "TrainingSettings":
        factor = 2 ** (len(self.channels) - 1)
        if any(n % factor for n in self.patch):
            raise ValueError(
                f"patch {self.patch} is not halved {len(self.channels) - 1} times, as {len(self.channels)} channels "
                f"ask for; accepted: multiples of {factor}"
            )
        if max(self.patch) == factor:
            raise ValueError(
                f"patch {self.patch} is one voxel in the last of {len(self.channels)} channels; accepted: a larger "
                "patch, or fewer channels"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> "TrainingSettings":
        if self.backend == "builtin" and self.device != "cpu":
            raise ValueError("the built-in backend trains on the CPU; accepted: device cpu, or another backend")
        return self

    @model_validator(mode="after")
    def _heeded(self) -> "TrainingSettings":
        for name, field in type(self).model_fields.items():
            users = _USERS.get(name, (self.backend,))
            if self.backend not in users and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is not heeded by the backend {self.backend}; accepted: without it, or the backend "
                    f"{' or '.join(users)}"
                )
        return self


class Experiment(Frozen):
    """A downstream experiment; paths in its file are relative to the file."""

    name: str
    manifest: Path
    groups: tuple[str, ...] = ()
    structures: dict[str, tuple[str, ...]] = Field(description="Classes, each of structures of the vocabulary.")
    spacing_mm: float = Field(gt=0, le=20)
    split: SplitSettings = SplitSettings()
    regimes: tuple[Regime, ...] = (Regime(),)
    synthetic: SyntheticSettings = SyntheticSettings()
    training: TrainingSettings = TrainingSettings()
    tolerance_mm: float = Field(default=2.0, ge=0, description="Of surface Dice.")

    @field_validator("structures", mode="before")
    @classmethod
    def _own_names(cls, given: Any) -> Any:
        """A list of names is a class for each; so is one text."""
        if isinstance(given, list | tuple):
            return {name: (name,) for name in given}
        if isinstance(given, dict):
            return {name: (parts,) if isinstance(parts, str) else parts for name, parts in given.items()}
        return given

    @model_validator(mode="after")
    def _has_something(self) -> "Experiment":
        if not self.structures or not all(self.structures.values()):
            raise ValueError("structures name nothing to segment")
        if not self.regimes:
            raise ValueError("regimes are a list of at least one")
        return self

    @property
    def most_synthetic(self) -> float:
        """Synthetic cases for each real one, at most."""
        return max(ratio for regime in self.regimes for ratio in regime.ratios)


class DownstreamRequest(Frozen):
    """An experiment, and over what its trainings are spread."""

    experiment: Experiment
    across: Across = Across()
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Of each process.",
        json_schema_extra={"shown_default": "its share of the cores"},
    )


def presets() -> list[str]:
    """Names of the experiments that ship with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("maisi.downstream").joinpath("presets").iterdir())


def read_experiment(given: str, assignments: Sequence[str] = (), manifest: Path | None = None) -> Experiment:
    """The experiment of a file or a preset, with settings changed; raises `InvalidConfigError`."""
    path = Path(given)
    if not path.is_file() and given in presets():
        path = Path(str(files("maisi.downstream").joinpath("presets", f"{given}.yaml")))
    elif not path.is_file():
        close = get_close_matches(given, presets(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"accepted: a YAML file, or {', '.join(presets())}"
        raise InvalidConfigError(f"there is no experiment {given!r}; {hint}")
    settings = _lasting(read_settings(path), path.parent)
    if manifest is not None:
        settings["manifest"] = str(manifest.resolve())
    if "manifest" not in settings:
        raise InvalidConfigError(f"the experiment {given!r} names no data; accepted: --manifest FILE")
    return check_settings(Experiment, _lasting(with_assignments(settings, assignments), Path()))


def _lasting(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with absolute paths instead of those that are relative to a folder."""
    for *groups, name in _PATHS:
        inner: Any = settings
        for group in groups:
            inner = inner.get(group) if isinstance(inner, dict) else None
        said = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(said, str) and not (name == BUNDLE and said in packaged_names()):
            inner[name] = str((folder / user_path(said)).resolve())
    return settings
