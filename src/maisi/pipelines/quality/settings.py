"""What becomes of samples that fail their check, and who checks them. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from maisi.pipelines.prepare.settings import check_segmenter
from maisi.shapes import Frozen

USUAL_TRIES = 3


class QualitySettings(Frozen):
    """How often a sample is tried, what is done when it fails, and the segmenter that it is shown to."""

    max_tries: int | None = Field(
        default=None,
        ge=1,
        description="How often a sample is drawn until it passes its check; what never does is set apart.",
        json_schema_extra={"shown_default": "1 and --on-failure keep; else 3"},
    )
    on_failure: Literal["redraw", "repair", "keep"] | None = Field(
        default=None,
        description="redraw: new noise; repair: new noise at what fails only; keep: no further try, marked, exit 0.",
        json_schema_extra={"shown_default": "keep; redraw with --max-tries"},
    )
    segmenter: str | None = Field(
        default=None,
        description="What labels each CT for its Dice: a bundle of maisi train segmenter, or a command such as "
        "'TotalSegmentator -i {image} -o {labels} --ml'.",
    )
    segmenter_numbering: str | None = Field(default=None, description="Whose numbers the segmenter's ids are.")
    segmenter_minutes: float = Field(default=60, gt=0, description="How long the segmenter may take for a CT.")
    least_dice: float = Field(default=0.5, ge=0, le=1, description="With a segmenter: a structure with less fails.")

    @model_validator(mode="after")
    def _names_a_segmenter(self) -> "QualitySettings":
        if self.segmenter is not None and self.is_command:
            check_segmenter(self.segmenter)
        return self

    @property
    def is_command(self) -> bool:
        """Whether the segmenter is a command, and not a bundle."""
        return self.segmenter is not None and ("{" in self.segmenter or " " in self.segmenter.strip())

    @property
    def sets_apart(self) -> bool:
        """Whether what fails is tried again and set apart, and does not stay, marked, among the others."""
        return self.max_tries is not None if self.on_failure is None else self.on_failure != "keep"

    @property
    def tries(self) -> int:
        """How often a sample is drawn at most."""
        return (self.max_tries or USUAL_TRIES) if self.sets_apart else 1
