"""How a file is to be read, and what was found in it: asked for by every command, kept in every record."""

from typing import Literal

from maisi.shapes import Frozen
from maisi.space.volume import Modality


class ReadOptions(Frozen):
    """What a user says about a file that the file does not say itself, or says twice."""

    modality: Modality = "ct"
    affine: Literal["sform", "qform"] | None = None  # which of a NIfTI's two places counts where they disagree
    series: str | None = None  # SeriesInstanceUID, of a DICOM folder with several series
    acquisition: str | None = None  # of a DICOM series that holds several acquisitions, phases or stations
    hu_offset: float = 0.0  # added to stored values to make them HU
    hu_window: tuple[float, float] | None = None  # HU of the lowest and the highest stored value, of a windowed image
    trust_hu: bool = False  # take the values as HU whatever they look like
    numbering: str | None = None  # whose numbers a label map's ids are: maisi, totalsegmentator, ..., or a file


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
