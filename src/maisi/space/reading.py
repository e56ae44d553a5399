"""How a file is to be read, and what was found in it: asked for by every command, kept in every record."""

from typing import Literal

from pydantic import Field

from maisi.shapes import Frozen, Modality


class ReadOptions(Frozen):
    """What a user says about a file that the file does not say itself, or says twice."""

    modality: Modality = Field(default="ct", description="What the image shows: ct or mr.")
    affine: Literal["sform", "qform"] | None = Field(
        default=None, description="Which of a NIfTI's two places counts where they disagree."
    )
    series: str | None = Field(default=None, description="The series (UID) to take of a DICOM folder with several.")
    acquisition: str | None = Field(
        default=None, description="The acquisition, phase or station to take of a DICOM series with several."
    )
    hu_offset: float = Field(default=0.0, description="Added to the stored values to make them HU.")
    hu_window: tuple[float, float] | None = Field(
        default=None, description="HU of the lowest and the highest stored value of a windowed image."
    )
    trust_hu: bool = Field(default=False, description="Take the values as HU whatever they look like.")
    numbering: str | None = Field(
        default=None,
        description="Whose numbers a label map's ids are: maisi, totalsegmentator, vista3d, amos, btcv, or a FILE.",
        json_schema_extra={"shown_default": "maisi"},
    )


class Finding(Frozen):
    """Something about a file that was not plain: what was found, and what was made of it."""

    topic: Literal["format", "place", "values", "padding", "slices", "series", "numbering", "orientation"]
    found: str
    decided: str
    is_warning: bool = False


class FileReport(Frozen):
    """What was found in a file and decided about it, in the order of reading."""

    path: str
    kind: Literal["volume", "labels"]
    findings: tuple[Finding, ...] = ()
