"""What a user can ask to be measured. Imports no torch: a command line is fast to refuse."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from maisi.compute.compute import Compute
from maisi.pipelines.prepare.settings import check_segmenter
from maisi.pipelines.requests import DEFAULT_BUNDLE
from maisi.shapes import Frozen, Modality, Spacing3

FEATURES = "scattering, a file (SqueezeNet or ResNet-50 weights, TorchScript), or module:callable."


class EvaluateImagesRequest(Frozen):
    """Comparing two sets of volumes: a manifest, a folder that maisi prepare made, or a folder of files."""

    real: Path = Field(description="Manifest, prepared folder or folder of files.")
    synthetic: Path = Field(description="Likewise.")
    features: str = Field(default="scattering", description=FEATURES)
    protocol: Literal["maisi", "paper"] = Field(
        default="maisi", description="maisi (4 mm, every 4th plane) or paper (1 mm, 512^3)."
    )
    real_split: str | None = Field(default=None, description="Split of the real manifest.")
    synthetic_split: str | None = Field(default=None, description="Split of the synthetic manifest.")
    modality: Modality = Field(default="ct", description="ct or mr.")
    draws: int = Field(default=200, ge=10, description="Resamplings for the intervals.")
    seed: int = Field(default=0, ge=0, description="Of the resamplings.")
    compute: Compute = Compute()


class EvaluateMemorizationRequest(Frozen):
    """Looking for copies of training volumes among generated ones."""

    generated: Path = Field(description="Manifest, prepared folder or folder of files.")
    real: Path = Field(description="Manifest of the real volumes, or a folder of those to train on.")
    of: Literal["images", "labels", "both"] = Field(
        default="images", description="What may be a copy: images, labels (label maps) or both."
    )
    held_out: Path | None = Field(
        default=None, description="Manifest or folder of held-out volumes, where REAL does not tell them."
    )
    training_split: str | None = Field(
        default=None,
        description="Split of the manifest that was trained on.",
        json_schema_extra={"shown_default": "training, or all where --held-out is given"},
    )
    held_out_split: str | None = Field(
        default=None,
        description="Split that was not.",
        json_schema_extra={"shown_default": "validation, or all of --held-out"},
    )
    features: str = Field(default="scattering", description=FEATURES)
    modality: Modality = Field(default="ct", description="ct or mr.")

    @property
    def splits(self) -> tuple[str | None, str | None]:
        """The splits of training and of held-out volumes."""
        usual = ("training", "validation") if self.held_out is None else (None, None)
        return self.training_split or usual[0], self.held_out_split or usual[1]


class EvaluateLabelsRequest(Frozen):
    """A segmenter on real and on synthetic volumes that have label maps."""

    real: Path = Field(description="Manifest, prepared folder, or folder of NAME_ct and NAME_labels files.")
    synthetic: Path = Field(description="Likewise.")
    segmenter: str | None = Field(
        default=None, description="Command that labels a CT, such as 'TotalSegmentator -i {image} -o {labels}'."
    )
    segmenter_numbering: str | None = Field(default=None, description="Whose numbers the segmenter's ids are.")
    segmenter_minutes: float = Field(default=60, gt=0, description="How long the segmenter may take for a case.")
    bundle: str | None = Field(default=None, description="Bundle whose own segmenter is taken instead of a command.")
    real_split: str | None = Field(default=None, description="Split of the real manifest.")
    synthetic_split: str | None = Field(default=None, description="Split of the synthetic manifest.")
    margin: float = Field(default=0.05, gt=0, lt=1, description="Difference of Dice that counts as none.")
    tolerance_mm: float = Field(default=2.0, ge=0, description="Of surface Dice, in mm.")
    unpaired: bool = Field(default=False, description="Do not pair cases of the same id or label map.")
    spacing: Spacing3 | None = Field(default=None, description="Resample both sets to this spacing (mm) first.")
    seed: int = Field(default=0, ge=0, description="Of the resamplings.")
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _one_segmenter(self) -> "EvaluateLabelsRequest":
        if (self.segmenter is None) == (self.bundle is None):
            given = "both" if self.bundle else "neither"
            raise ValueError(f"a segmenter is a command or one of a bundle, {given} given; accepted: one of the two")
        check_segmenter(self.segmenter)
        return self


class EvaluateAutoencoderRequest(Frozen):
    """The autoencoder of a bundle on a set of volumes."""

    source: Path = Field(description="Manifest, prepared folder or folder of files.")
    bundle: str = Field(default=DEFAULT_BUNDLE, description="Packaged bundle or folder.")
    split: str | None = Field(default=None, description="Split of the manifest.")
    modality: Modality = Field(default="ct", description="Of files in a folder: ct or mr.")
    lpips: tuple[Path, ...] = Field(
        default=(), description="Weights of LPIPS with SqueezeNet; may be repeated: trunk and heads."
    )
    force: bool = Field(default=False, description="Go on beyond what the bundle was trained for.")
    seed: int = Field(default=0, ge=0, description="Of the resamplings.")
    compute: Compute = Compute()


class EvaluateDemographicsRequest(Frozen):
    """The numbers of a report by groups of patients."""

    manifest: Path = Field(description="Manifest or prepared folder that tells of the cases.")
    report: Path | None = Field(
        default=None, description="labels.json, autoencoder.json or any JSON of cases with numbers."
    )
    by: str = Field(description="Column of the manifest: sex, age, any of its attributes, group, region.")
    bands: tuple[float, ...] = Field(default=(), description="Edge between bands of a number; may be repeated.")
    asked: tuple[str, ...] = Field(
        default=(), description="Share that a group was to have, such as F=0.5, of the sum of all; may be repeated."
    )
    like: Path | None = Field(default=None, description="Manifest whose shares of groups were asked for.")
    bundle: str | None = Field(default=None, description="Bundle that generated: what it can be asked for is told.")
    figures: tuple[str, ...] = Field(default=(), description="Figures, such as '*.liver.dice'; may be repeated.")
    least: int = Field(default=5, ge=2, description="Patients that a group needs for a statement.")
    seed: int = Field(default=0, ge=0, description="Of the resamplings.")

    @model_validator(mode="after")
    def _something(self) -> "EvaluateDemographicsRequest":
        if self.asked and self.like is not None:
            raise ValueError("shares are given and a manifest is to be like; accepted: one of asked and like")
        if self.report is None and not self.asked and self.like is None:
            raise ValueError("nothing to compare; accepted: a REPORT, or shares by --asked or --like, or both")
        return self
