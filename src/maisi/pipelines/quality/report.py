"""What is found of a label map, and of a CT that was made after it: a file beside every sample."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from maisi.anatomy.references import HuRange, Phase
from maisi.shapes import Frozen

Level = Literal["info", "fail"]
Check = Literal["image", "presence", "volume", "pieces", "place", "host", "neighbours", "hu", "spread", "edge", "dice"]

OF_LABELS: tuple[Check, ...] = ("presence", "volume", "pieces", "place", "host", "neighbours")
"""Checks of the label map alone: another draw of the noise changes nothing there."""

BRIEF = 3  # reasons in a line


class Finding(Frozen):
    """One thing that is not as it should be; an `info` fails nothing."""

    check: Check
    level: Level
    words: str


class HuMeasure(Frozen):
    """Median and spread of a structure's Hounsfield units, beside those of real CTs.

    `is_core`: of the voxels without partial volume; else, for want of them, of all its voxels.
    """

    median: float
    spread: float
    voxels: int
    is_core: bool
    reference: HuRange | None = None


class StructureReport(Frozen):
    """What was measured of a structure: volumes in ml, HU, pieces, neighbours by surface, contrast at its edge.

    `edge` is the step in HU at the surface, as a share of what the means of both sides would make; partial volume makes
    it about a half. Beside an `asked_ml`, `ml`, `voxels` and `is_cut` are of all that counts to the structure: an organ
    with its tumours and vessels, lungs with their lobes. `segmented_ml` and `dice` are by the segmenter, where one was
    set.
    """

    id: int
    name: str
    ml: float
    voxels: int
    asked_ml: float | None = None
    segmented_ml: float | None = None
    is_cut: bool = False
    pieces: int | None = None
    largest_piece: float | None = None
    neighbours: tuple[str, ...] = ()
    hu: HuMeasure | None = None
    edge: float | None = None
    dice: float | None = None
    findings: tuple[Finding, ...] = ()
    passed: bool = Field(default_factory=lambda data: not _fails(data["findings"]))


class QualityReport(Frozen):
    """The findings of a whole map or sample: of the image, and by structure. `tries` draws were needed for it."""

    schema_version: Literal[1] = 1
    tries: int = Field(default=1, ge=1)
    labels_from: str = ""  # the map of a library behind the labels, and how far it is from the nearest map there
    phase: Phase | None = None  # with or without contrast medium, where an aorta or the request tells
    held_to: tuple[str, ...] | None = None  # what can fail in the image; None: every structure
    findings: tuple[Finding, ...] = ()
    structures: tuple[StructureReport, ...] = ()
    passed: bool = Field(
        default_factory=lambda data: not _fails(data["findings"]) and all(row.passed for row in data["structures"])
    )

    @property
    def reasons(self) -> tuple[str, ...]:
        """What fails, a sentence each."""
        return tuple(_words(self._all(), "fail"))

    @property
    def in_brief(self) -> str:
        """What fails, as much of it as one line tells."""
        told = "; ".join(self.reasons[:BRIEF])
        return told + (f"; and {len(self.reasons) - BRIEF} more" if len(self.reasons) > BRIEF else "")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is not usual and fails nothing, a sentence each."""
        return tuple(_words(self._all(), "info"))

    @property
    def failing(self) -> tuple[int, ...]:
        """The ids of the structures of which the image fails."""
        return tuple(
            row.id for row in self.structures if _fails(found for found in row.findings if found.check not in OF_LABELS)
        )

    @property
    def image_reasons(self) -> tuple[str, ...]:
        """What fails in the image, whatever its labels do."""
        return tuple(_words([each for each in self._all() if each[1].check not in OF_LABELS], "fail"))

    @property
    def is_repairable(self) -> bool:
        """Whether only structures fail in the image, and not the whole of it."""
        return bool(self.failing) and not _fails(self.findings)

    def _all(self) -> list[tuple[str, Finding]]:
        rows = [(row.name, found) for row in self.structures for found in row.findings]
        return [*(("", found) for found in self.findings), *rows]


def _fails(findings: Iterable[Finding]) -> bool:
    return any(finding.level == "fail" for finding in findings)


def _words(found: Iterable[tuple[str, Finding]], level: Level) -> list[str]:
    sentences = [f"{name}: {each.words}" if name else each.words for name, each in found if each.level == level]
    return list(dict.fromkeys(sentences))
