"""How raw scans become training cases. Imports no torch."""

import math
import shlex
from pathlib import Path

from pydantic import Field, model_validator

from maisi.compute.across import Across
from maisi.shapes import Frozen, Spacing3
from maisi.space.reading import ReadOptions


def check_segmenter(command: str | None) -> None:
    """Nothing, or a `ValueError` for what is no command with places for the CT and the label map."""
    if command is not None and not ("{image}" in command and "{labels}" in command):
        raise ValueError("segmenter needs {image} and {labels}, where it reads the CT and writes the label map")
    try:
        shlex.split(command or "")
    except ValueError as error:
        raise ValueError(f"segmenter {command!r} is no command: {error}") from error


class PrepareSettings(Frozen):
    """The grid of prepared cases, where labels come from, and how patients are divided."""

    multiple: int = Field(
        default=32,
        ge=1,
        description="Sizes become the nearest multiple of this; released networks need 32, the paper took 128.",
    )
    spacing: Spacing3 | None = Field(
        default=None, description="Spacing in mm to resample to first; sizes are then padded to the multiple."
    )
    segmenter: str | None = Field(
        default=None, description="Command that labels a CT, such as 'TotalSegmentator -i {image} -o {labels}'."
    )
    segmenter_numbering: str | None = Field(default=None, description="Whose numbers the segmenter's ids are.")
    segmenter_minutes: float = Field(default=60, gt=0, description="How long the segmenter may take for a case.")
    labelled_only: bool = Field(default=False, description="Refuse scans without labels.")
    validation: float = Field(default=0.1, ge=0, lt=1, description="Share of patients for validation.")
    testing: float = Field(default=0.0, ge=0, lt=1, description="Share of patients for testing.")
    split_seed: int = Field(default=0, ge=0, description="Draws the split where a source has none.")

    @model_validator(mode="after")
    def _possible(self) -> "PrepareSettings":
        if self.validation + self.testing >= 1:
            raise ValueError(f"validation {self.validation:g} and testing {self.testing:g} leave nothing for training")
        check_segmenter(self.segmenter)
        if self.spacing is not None and not all(0 < each < math.inf for each in self.spacing):
            raise ValueError(f"spacing {self.spacing} is not three positive numbers of millimetres")
        return self


class PrepareRequest(Frozen):
    """Folders and files of scans, and what is to be made of them."""

    sources: tuple[Path, ...] = Field(description="Folders of scans, datalists, manifests.")
    layout: str | None = Field(
        default=None, description="How they are laid out: manifest, nnunet, datalist, totalsegmentator, nifti, dicom."
    )
    prepare: PrepareSettings = PrepareSettings()
    reading: ReadOptions = ReadOptions()
    across: Across = Across()
