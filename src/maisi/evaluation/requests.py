"""What a user can ask to be measured. Imports no torch: a command line is fast to refuse."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from maisi.shapes import Frozen, Modality


class EvaluateImagesRequest(Frozen):
    """Comparing two sets of volumes: a manifest, a folder that maisi prepare made, or a folder of files."""

    real: Path = Field(description="Manifest, prepared folder or folder of files.")
    synthetic: Path = Field(description="Likewise.")
    features: str = Field(
        default="scattering", description="scattering, a TorchScript file (.pt, .ts), or module:callable."
    )
    protocol: Literal["maisi", "paper"] = Field(
        default="maisi", description="maisi (4 mm, every 4th plane) or paper (1 mm, 512^3)."
    )
    real_split: str | None = Field(default=None, description="Split of the real manifest.")
    synthetic_split: str | None = Field(default=None, description="Split of the synthetic manifest.")
    modality: Modality = Field(default="ct", description="ct or mr.")
    draws: int = Field(default=200, ge=0, description="Resamplings for the intervals.")
    seed: int = Field(default=0, ge=0, description="Of the resamplings.")


class EvaluateMemorizationRequest(Frozen):
    """Looking for copies of training volumes among generated ones."""

    generated: Path = Field(description="Manifest, prepared folder or folder of files.")
    real: Path = Field(description="Manifest of the real volumes, or a folder of those to train on.")
    held_out: Path | None = Field(default=None, description="Folder of held-out volumes, where no manifest tells them.")
    training_split: str | None = Field(default="training", description="Split of the manifest that was trained on.")
    held_out_split: str | None = Field(default="validation", description="Split that was not.")
    features: str = Field(
        default="scattering", description="scattering, a TorchScript file (.pt, .ts), or module:callable."
    )
    modality: Modality = Field(default="ct", description="ct or mr.")

    @model_validator(mode="after")
    def _folders_have_no_splits(self) -> "EvaluateMemorizationRequest":
        if self.held_out is not None:
            object.__setattr__(self, "training_split", None)
            object.__setattr__(self, "held_out_split", None)
        return self
