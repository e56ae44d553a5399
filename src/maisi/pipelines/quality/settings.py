"""What becomes of samples that fail their check, and who checks them. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from maisi.pipelines.prepare.settings import check_segmenter
from maisi.shapes import Frozen


class QualitySettings(Frozen):
    """How often a sample is tried, what is done when it fails, and the segmenter that it is shown to."""

    max_tries: int = Field(default=3, ge=1, description="How often a sample is drawn until it passes its check.")
    on_failure: Literal["redraw", "repair", "keep"] = Field(
        default="redraw",
        description="redraw: new noise; repair: new noise at what fails only; keep: no further try, marked, exit 0.",
    )
    segmenter: str | None = Field(
        default=None,
        description="Command that labels each CT for its Dice, such as 'TotalSegmentator -i {image} -o {labels} --ml'.",
    )
    segmenter_numbering: str | None = Field(default=None, description="Whose numbers the segmenter's ids are.")
    segmenter_minutes: float = Field(default=60, gt=0, description="How long the segmenter may take for a CT.")
    least_dice: float = Field(default=0.5, ge=0, le=1, description="With a segmenter: a structure with less fails.")

    @model_validator(mode="after")
    def _is_a_command(self) -> "QualitySettings":
        check_segmenter(self.segmenter)
        return self

    @property
    def tries(self) -> int:
        """How often a sample is drawn at most."""
        return 1 if self.on_failure == "keep" else self.max_tries
