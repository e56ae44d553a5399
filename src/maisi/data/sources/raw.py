"""What a layout of files says of each of its cases before any file is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maisi.shapes import Modality

Split = Literal["training", "validation", "testing"]


@dataclass(frozen=True)
class RawLabels:
    """Labels of a case as they were found: a file, or a folder of one mask a structure.

    `names` gives the meaning of ids, `numbering` whose numbers they are; with neither, what the file itself says holds.
    Expert labels go before labels that a model has made.
    """

    path: Path
    names: Mapping[int, str] | None = None
    numbering: str | None = None
    is_expert: bool = True


@dataclass(frozen=True)
class RawCase:
    """A scan as a layout of files presents it, unread.

    `image` is a file or the folder of a DICOM series (`series` names it where a folder holds several). What the layout
    does not say is None or empty. `attributes` are columns about the patient or the scan, such as sex and age.
    """

    id: str
    image: Path
    labels: tuple[RawLabels, ...] = ()
    patient: str = ""
    series: str | None = None
    modality: Modality | None = None
    split: Split | None = None
    dataset: str = ""
    licence: str = ""
    region: str = ""
    source: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PassedOver:
    """Something in a source that is no case, and why."""

    path: Path
    why: str
    is_unread: bool = False  # an image, but of a format that is not read here


@dataclass(frozen=True)
class Found:
    """What a source holds, by the layout that it has: cases in a lasting order, and what was passed over."""

    layout: str
    cases: tuple[RawCase, ...]
    passed_over: tuple[PassedOver, ...] = ()
