"""What a user can ask for, checked before any network is loaded. Imports no torch: a command line is fast to refuse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from maisi.anatomy.wish import Wish
from maisi.compute.across import Across
from maisi.compute.compute import Compute
from maisi.pipelines.quality.settings import QualitySettings
from maisi.shapes import Frozen, Modality, Size3, Spacing3
from maisi.space.reading import ReadOptions

DEFAULT_BUNDLE = "ct-small"
DEFAULT_SEGMENTER = "ct-segmenter"
DEFAULT_LABEL_GENERATOR = "ct-labels"
DEFAULT_REGION = "chest"


def _finite(spacing: Spacing3 | None) -> Spacing3 | None:
    if spacing is not None and not all(0 < s < 100 for s in spacing):
        raise ValueError(f"spacing {spacing} mm is not between 0 and 100 mm")
    return spacing


def _positive(size: Size3 | None) -> Size3 | None:
    if size is not None and min(size) < 1:
        raise ValueError(f"size {size} has an axis without voxels")
    return size


Spacing = Annotated[Spacing3 | None, AfterValidator(_finite)]
Voxels = Annotated[Size3 | None, AfterValidator(_positive)]
BundleName = Annotated[str, Field(description="Packaged bundle or folder.")]


def _texts(wishes: Any) -> Any:
    """A mapping of names to sizes, or one text, as texts."""
    if isinstance(wishes, Mapping):
        return tuple(f"{name}={size}" for name, size in wishes.items())
    return (wishes,) if isinstance(wishes, str) else wishes


def _wishes(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(Wish.parse(text).text for text in texts)


Wishes = Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_wishes)]
"""Structures that are asked for, as `NAME=SIZE`."""


class GenerateRequest(Frozen):
    """A number of volumes with labels. Size (voxels) and spacing (mm) follow the region, or the labels given.

    Without labels the region is the chest; with labels it is what they show, unless named. How strongly the ControlNet
    steers is the bundle's to say, unless `controlnet_scale` does.
    """

    bundle: BundleName = DEFAULT_BUNDLE
    region: str | None = Field(
        default=None,
        description="head, chest, abdomen, lower; labels show it too.",
        json_schema_extra={"shown_default": DEFAULT_REGION},
    )
    size: Voxels = Field(
        default=None, description="Voxels.", json_schema_extra={"shown_default": "what shows the region"}
    )
    spacing: Spacing = Field(default=None, description="Voxel size in mm.")
    labels: Path | None = Field(
        default=None, description="Label map to follow, or a folder of them; without it one is drawn."
    )
    library: Path | None = Field(
        default=None,
        description="Library whose label maps are drawn and bent.",
        json_schema_extra={"shown_default": "the packaged one where it shows what is asked for; else a phantom"},
    )
    phantom: bool = Field(default=False, description="Labels of a drawn phantom, with all structures of the region.")
    min_distance: float | None = Field(
        default=None, ge=0, le=1, description="Least distance of a drawn map to every map of the library, 0 to 1."
    )
    label_bundle: str | None = Field(
        default=None, description="Bundle whose label generator draws the labels: packaged name or folder."
    )
    enclose: bool = Field(default=False, description="Draw a body around labels that have none.")
    anatomy: Wishes = Field(
        default=(),
        description="Structures asked for: liver=0.6 spleen=180ml 'hepatic tumor'=25mm gallbladder=none.",
    )
    unlabelled: bool = Field(default=False, description="The U-Net alone: images that follow no labels.")
    count: int = Field(default=1, ge=1, description="Samples; of a folder of label maps, of each.")
    first: int = Field(default=0, ge=0, description="Number of the first sample; the others follow.")
    seed: int = Field(default=0, ge=0, description="Same seed, same samples.")
    steps: int = Field(default=10, ge=1, description="Steps of the sampler.")
    solver: Literal["multistep", "euler", "ancestral"] = Field(
        default="multistep", description="multistep, euler or ancestral."
    )
    modality: str = Field(default="ct", description="What to imitate.")
    controlnet_scale: float | None = Field(
        default=None,
        ge=0,
        description="How strongly labels steer.",
        json_schema_extra={"shown_default": "the bundle's"},
    )
    guidance_labels: float = Field(default=1.0, ge=0, description="Guidance by labels; 1 is none, more is stronger.")
    guidance_conditions: float = Field(
        default=1.0, ge=0, description="Guidance by region, spacing and modality; 1 is none, more is stronger."
    )
    quality: QualitySettings = QualitySettings()
    format: Literal["nii.gz", "nii", "nrrd", "mha", "dicom"] = Field(
        default="nii.gz", description="nii.gz, nii, nrrd, mha or dicom."
    )
    force: bool = Field(default=False, description="Go on beyond what the bundle was trained for.")
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()

    @property
    def indices(self) -> range:
        """The numbers of the samples."""
        return range(self.first, self.first + self.count)

    @model_validator(mode="after")
    def _fits_together(self) -> "GenerateRequest":
        if self.enclose and self.labels is None and self.library is None:
            raise ValueError("enclose draws a body around given labels; name them by --labels FILE, or leave it out")
        places = (self.labels, self.library, self.label_bundle)
        if sum(place is not None for place in places) + self.unlabelled + self.phantom > 1:
            raise ValueError(
                "labels come from one place; give one of labels, library, label_bundle, phantom and unlabelled"
            )
        if self.min_distance is not None and self.library is None:
            raise ValueError("min_distance is about a library; name it by --library DIR, or leave it out")
        if self.unlabelled and self.anatomy:
            raise ValueError("unlabelled images follow no labels; give either anatomy or unlabelled")
        if self.format == "dicom" and not self.modality.startswith("ct"):
            raise ValueError(f"DICOM is written of CT, not of {self.modality}; give another format")
        if self.unlabelled and self.guidance_labels != 1:
            raise ValueError("unlabelled images follow no labels; leave out guidance_labels")
        return self


class EncodeRequest(Frozen):
    """Encoding one CT, or a label map with an autoencoder of label maps. With a spacing (mm) it is resampled first."""

    source: Path | None = Field(default=None, description=".nii, .nii.gz, .nrrd, .mha or a DICOM folder.")
    content: Literal["volume", "labels"] | None = Field(
        default=None,
        description="What the file holds: volume or labels.",
        json_schema_extra={"shown_default": "what the bundle's autoencoder takes"},
    )
    bundle: BundleName = DEFAULT_BUNDLE
    spacing: Spacing = Field(default=None, description="Voxel size in mm; the volume is resampled first.")
    force: bool = Field(default=False, description="Go on beyond what the bundle was trained for.")
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()


class EncodeCasesRequest(Frozen):
    """Encoding all cases of a manifest, for training."""

    manifest: Path = Field(description="Manifest of cases, or the folder that maisi prepare made.")
    bundle: BundleName = DEFAULT_BUNDLE
    across: Across = Across()
    compute: Compute = Compute()


class RegisterRequest(Frozen):
    """Labelling a CT by labelled ones."""

    source: Path = Field(description=".nii, .nii.gz, .nrrd, .mha or a DICOM folder.")
    atlases: Path = Field(description="Manifest of labelled CTs, or the folder that maisi prepare made.")
    leave_out: tuple[str, ...] = Field(
        default=(), description="Case of the manifest that is no atlas; may be repeated."
    )
    doubtful: float = Field(default=0.7, ge=0, le=1, description="Agreement below which a structure is told.")
    reading: ReadOptions = ReadOptions()


class SegmentRequest(Frozen):
    """Telling the structures of one CT by a bundle's segmenter."""

    source: Path = Field(description=".nii, .nii.gz, .nrrd, .mha or a DICOM folder.")
    bundle: BundleName = DEFAULT_SEGMENTER
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()


class ReconstructRequest(EncodeRequest):
    """Encoding and decoding one CT, to measure what is lost."""


class AugmentLabelsRequest(Frozen):
    """Variants of a label map: its tumours moved within their organs, or with new ones."""

    labels: Path = Field(description="Label map, a file or a folder of masks.")
    add: str | None = Field(
        default=None, description='Plant new tumours, such as "hepatic tumor"; without it those of the map are varied.'
    )
    diameter: float | None = Field(
        default=None,
        gt=0,
        description="Of a new tumour, mm; of the ball of its volume.",
        json_schema_extra={"shown_default": "drawn"},
    )
    volume: float | None = Field(default=None, gt=0, description="Of a new tumour, ml, instead of the diameter.")
    number: int = Field(default=1, ge=1, description="New tumours in each variant.")
    at: tuple[float, float, float] | None = Field(
        default=None, description="Middle of the new tumour, mm (RAS).", json_schema_extra={"shown_default": "drawn"}
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        description="How far given tumours are varied.",
        json_schema_extra={"shown_default": "1"},
    )
    count: int = Field(default=1, ge=1, description="Variants.")
    seed: int = Field(default=0, ge=0, description="Same seed, same variants.")
    format: Literal["nii.gz", "nii"] = Field(default="nii.gz", description="nii.gz or nii.")
    reading: ReadOptions = ReadOptions()

    @model_validator(mode="after")
    def _fits_together(self) -> "AugmentLabelsRequest":
        given = [name for name in ("diameter", "volume", "at") if getattr(self, name) is not None]
        given += ["number"] if self.number > 1 else []
        if self.add is None and given:
            raise ValueError(f"{' and '.join(given)} is of a new tumour; name it by --add, or leave it out")
        if self.add is not None and self.strength is not None:
            raise ValueError("strength is of tumours that the map holds; leave out --add, or the strength")
        return self


class DecodeRequest(Frozen):
    """Decoding one latent onto the grid of the volume that was encoded."""

    source: Path = Field(description="A file of maisi encode.")
    modality: Modality | None = Field(
        default=None, description="What the image shows: ct or mr.", json_schema_extra={"shown_default": "the latent's"}
    )
    bundle: BundleName = DEFAULT_BUNDLE
    force: bool = Field(default=False, description="Go on beyond what the bundle was trained for.")
    compute: Compute = Compute()


class PlanRequest(Frozen):
    """All that a bundle can do with a volume of a size, within memory."""

    size: Voxels = Field(default=None, description="Voxels of the volume.")
    bundle: BundleName = DEFAULT_BUNDLE
    compute: Compute = Compute()


class GenerateLabelsRequest(Frozen):
    """A number of label maps, drawn from a region and the sizes of organs."""

    bundle: BundleName = DEFAULT_LABEL_GENERATOR
    region: str = Field(default=DEFAULT_REGION, description="head, chest, abdomen, lower.")
    anatomy: Wishes = Field(
        default=(),
        description="Structures asked for: liver=0.6 spleen=180ml 'hepatic tumor'=25mm gallbladder=none.",
    )
    size: Voxels = Field(
        default=None, description="Voxels.", json_schema_extra={"shown_default": "all that the generator draws"}
    )
    spacing: Spacing = Field(
        default=None,
        description="Voxel size in mm.",
        json_schema_extra={"shown_default": "the generator's, divided to 5 mm or less"},
    )
    count: int = Field(default=1, ge=1, description="Label maps.")
    seed: int = Field(default=0, ge=0, description="Same seed, same maps.")
    steps: int = Field(default=30, ge=1, description="Steps of the sampler.")
    guidance: float = Field(default=1.0, ge=0, description="Above 1 sizes are heeded more.")
    max_tries: int = Field(
        default=5, ge=1, description="How often a map is drawn until it shows what was asked for and passes its check."
    )
    on_failure: Literal["redraw", "keep"] = Field(
        default="redraw",
        description="What fails its check: redraw: drawn again, at last set apart; keep: marked, exit 0.",
    )
    format: Literal["nii.gz", "nii"] = Field(default="nii.gz", description="nii.gz or nii.")
    compute: Compute = Compute()
