"""Recipes: all settings of the training of a bundle, or of one of its networks."""

from typing import TypeVar

from pydantic import Field

from maisi.anatomy.vocabulary import Vocabulary
from maisi.bundle.bundle import Limits, SchedulerSpec
from maisi.data.dataset import KEPT_BYTES as KEPT_VOLUME_BYTES
from maisi.data.latents import KEPT_BYTES as KEPT_LATENT_BYTES
from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen, Size3
from maisi.training.autoencoder import AutoencoderTraining
from maisi.training.controlnet import ControlNetTraining
from maisi.training.diffusion import DiffusionTraining
from maisi.training.new_classes import NewClass, vocabulary_with
from maisi.training.segmenter import SegmenterTraining

PHANTOM = "phantom"
PARTS = ("autoencoder", "diffusion", "controlnet", "segmenter")

Part = TypeVar("Part", bound=Frozen)


class LatentRecipe(Frozen):
    """How many variations of each case are encoded, and within which spacings (mm) and sizes (voxels)."""

    as_prepared: bool = False  # cases as they are, once, on sizes that are multiples already
    variations: dict[str, int] = Field(default_factory=dict)  # without, one of each case
    spacing_mm: tuple[float, float] = (2.0, 5.0)
    max_size: Size3 = (96, 96, 96)
    tissues_only: float = Field(default=0.3, ge=0, le=1)
    without_fat: float = Field(default=0.5, ge=0, le=1)  # fat as plain body, as in label maps made elsewhere
    exclude: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()  # names of labels, or numbers without a name, that count as background
    num_phantoms: int = Field(default=0, ge=0)
    weights: dict[str, float] = Field(default_factory=dict)


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
    groups: dict[str, float] = Field(default_factory=dict)
    spacings_mm: tuple[float, ...] = ()
    limits: Limits = Limits()
    controlnet_scale: float | None = Field(default=None, ge=0)  # that of the bundle to start from, else 1
    shown_as: dict[str, str] | None = None  # likewise, else every structure as itself
    scheduler: SchedulerSpec | None = None  # that of the bundle to start from, else a rectified flow
    autoencoder: AutoencoderTraining | None = None
    latents: LatentRecipe = LatentRecipe()
    diffusion: DiffusionTraining | None = None
    controlnet: ControlNetTraining | None = None
    segmenter: SegmenterTraining | None = None
    measured_samples: int = Field(default=10, ge=0)  # generated for the model card
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

    def for_autoencoder(self) -> AutoencoderTraining:
        """The settings of the autoencoder; `InvalidConfigError` where the recipe has none. Below alike."""
        return self._part("autoencoder", self.autoencoder)

    def for_unet(self) -> DiffusionTraining:
        """The settings of the U-Net."""
        return self._part("diffusion", self.diffusion)

    def for_controlnet(self) -> ControlNetTraining:
        """The settings of the ControlNet."""
        return self._part("controlnet", self.controlnet)

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
