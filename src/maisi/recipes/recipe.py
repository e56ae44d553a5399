"""Recipes: all settings of the training of a bundle, or of one of its networks."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from maisi.anatomy.tumours.table import tumour_named
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.bundle.bundle import Limits, RectifiedFlowSpec, SchedulerSpec
from maisi.data.dataset import KEPT_BYTES as KEPT_VOLUME_BYTES
from maisi.data.latents import KEPT_BYTES as KEPT_LATENT_BYTES
from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen, Size3, Spacing3
from maisi.training.autoencoder import AutoencoderTraining
from maisi.training.controlnet import ControlNetTraining
from maisi.training.diffusion import DiffusionTraining
from maisi.training.labels import LabelAutoencoderTraining
from maisi.training.new_classes import NewClass, vocabulary_with
from maisi.training.segmenter import SegmenterTraining

PHANTOM = "phantom"
PARTS = ("autoencoder", "diffusion", "controlnet", "labels", "segmenter")

Part = TypeVar("Part", bound=Frozen)


def _can_be_drawn(weights: dict[str, float]) -> dict[str, float]:
    if weights and not any(weights.values()):
        raise ValueError(f"no group is ever drawn, all weigh 0: {', '.join(weights)}")
    return weights


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weights = Annotated[dict[str, Weight], AfterValidator(_can_be_drawn)]
"""How often each group is drawn; at least one of them is."""


class LatentRecipe(Frozen):
    """How many variations of each case are encoded, and within which spacings (mm) and sizes (voxels)."""

    as_prepared: bool = False  # cases as they are, once, on sizes that are multiples already
    variations: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)  # without, one of each case
    spacing_mm: tuple[float, float] = (2.0, 5.0)
    max_size: Size3 = (96, 96, 96)
    tissues_only: float = Field(default=0.3, ge=0, le=1)
    without_fat: float = Field(default=0.5, ge=0, le=1)  # fat as plain body, as in label maps made elsewhere
    exclude: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()  # names of labels, or numbers without a name, that count as background
    num_phantoms: int = Field(default=0, ge=0)
    weights: Weights = Field(default_factory=dict)

    def takes(self, case: Case) -> bool:
        """Whether latents of a case are made and drawn."""
        varies = self.as_prepared or not self.variations or self.variations.get(case.group, 0) > 0
        weighs = not self.weights or self.weights.get(case.group, 0) > 0
        return varies and weighs and case.id not in self.exclude


class LabelMapsRecipe(Frozen):
    """The label maps that a label generator learns from: one grid for all, cases in variations, and phantoms.

    A case counts where its labels name a body (or its CT shows it) and `least_structures`; of its regions those that
    it covers to `least_cover` of the height.
    """

    size: Size3 = (256, 256, 256)
    spacing_mm: Spacing3 = (1.5, 1.5, 1.5)
    channels: Literal["released", "found"] = "released"  # the structures that have a logit
    structures: tuple[str, ...] = ()  # of those found, by name or group; other bones become skeleton, all else body
    least_structures: int = Field(default=20, ge=1)
    least_cover: float = Field(default=0.85, ge=0, le=1)
    enclose: bool = False  # draw a body around the structures of maps that have none
    variations: int = Field(default=1, ge=1)  # of each region of a case
    zoom: float = Field(default=0.05, ge=0, lt=0.5)  # standard deviation of the size of a person, on each axis
    bend_mm: float = Field(default=0.0, ge=0)
    tumours: dict[str, float] = Field(default_factory=dict)  # how often one of these is planted, where it has a host
    num_phantoms: int = Field(default=0, ge=0)
    phantom_share: float = Field(default=0.5, gt=0, lt=1)  # of the latents that are drawn, where there are cases too

    @field_validator("structures")
    @classmethod
    def _known_structures(cls, structures: tuple[str, ...]) -> tuple[str, ...]:
        for name in structures:
            load_vocabulary().members(name)
        return structures

    @model_validator(mode="after")
    def _chooses_once(self) -> "LabelMapsRecipe":
        if self.structures and self.channels == "released":
            raise ValueError("structures choose among those found; accepted: channels: found, or no structures")
        return self

    @field_validator("tumours")
    @classmethod
    def _known_tumours(cls, tumours: dict[str, float]) -> dict[str, float]:
        for name, chance in tumours.items():
            tumour_named(name, load_vocabulary())
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} is planted with a chance from 0 to 1, not {chance}")
        return tumours


class LabelsRecipe(Frozen):
    """A label generator: its maps, the autoencoder of these, and the U-Net on their latents."""

    maps: LabelMapsRecipe = LabelMapsRecipe()
    autoencoder: LabelAutoencoderTraining
    diffusion: DiffusionTraining
    scheduler: SchedulerSpec = RectifiedFlowSpec()


class BundleRecipe(Frozen):
    """All settings of a bundle; `groups` weighs the groups of the manifest in the training of
    the autoencoder and of the segmenter.

    A recipe may lack the parts of networks that it does not train; groups that neither `groups` nor `latents` weigh are
    not used, and without any weight all cases count alike.
    """

    name: str
    seed: int = 0
    description: str = ""
    expectations: str = ""
    licence: str
    groups: Weights = Field(default_factory=dict)
    spacings_mm: tuple[float, ...] = ()
    limits: Limits = Limits()
    controlnet_scale: float | None = Field(default=None, ge=0)  # that of the bundle to start from, else 1
    shown_as: dict[str, str] | None = None  # likewise, else every structure as itself
    scheduler: SchedulerSpec | None = None  # that of the bundle to start from, else a rectified flow
    autoencoder: AutoencoderTraining | None = None
    latents: LatentRecipe = LatentRecipe()
    diffusion: DiffusionTraining | None = None
    controlnet: ControlNetTraining | None = None
    labels: LabelsRecipe | None = None  # the label generator, which `maisi train labels` trains
    segmenter: SegmenterTraining | None = None
    measured_samples: int = Field(default=10, ge=0)  # generated for the model card
    measured_realism: bool = False  # whether held-out cases are imitated and compared with, which takes minutes
    kept_volume_bytes: int = Field(default=KEPT_VOLUME_BYTES, ge=0)  # of volumes in memory while the autoencoder learns
    kept_latent_bytes: int = Field(default=KEPT_LATENT_BYTES, ge=0)  # of latents, while the other networks learn

    @property
    def classes(self) -> dict[str, NewClass]:
        """The classes that its parts add to the vocabulary, by name."""
        parts = (self.diffusion, self.controlnet)
        return {name: new for part in parts if part is not None for name, new in part.classes.items()}

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary with these classes."""
        return vocabulary_with(self.classes)

    def shows(self, case: Case) -> bool:
        """Whether the autoencoder sees a case."""
        return not self.groups or self.groups.get(case.group, 0) > 0

    def for_autoencoder(self) -> AutoencoderTraining:
        """The settings of the autoencoder; `InvalidConfigError` where the recipe has none. Below alike."""
        return self._part("autoencoder", self.autoencoder)

    def for_unet(self) -> DiffusionTraining:
        """The settings of the U-Net."""
        return self._part("diffusion", self.diffusion)

    def for_controlnet(self) -> ControlNetTraining:
        """The settings of the ControlNet."""
        return self._part("controlnet", self.controlnet)

    def for_labels(self) -> LabelsRecipe:
        """The settings of the label generator."""
        return self._part("labels", self.labels)

    def for_segmenter(self) -> SegmenterTraining:
        """The settings of the segmenter."""
        return self._part("segmenter", self.segmenter)

    def _part(self, name: str, part: Part | None) -> Part:
        if part is None:
            there = [each for each in PARTS if getattr(self, each) is not None]
            raise InvalidConfigError(
                f"recipe {self.name} says nothing of {name}; it has {', '.join(there) or 'nothing'}"
            )
        return part
