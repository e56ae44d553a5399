"""What structures look like in real CTs, and which are of one piece: measured, with the vocabulary where nobody has.

`reference_hu.yaml`, `reference_pieces.yaml` and `reference_neighbours.yaml` are written by benchmarks of these names.
"""

from functools import lru_cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import Field

from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen

Phase = Literal["plain", "contrast"]

PRIOR_SCANS = 4.0
"""The vocabulary's mean and standard deviation count as much as so many scans."""

ENOUGH_SCANS = 3
"""With fewer scans of a phase, those of all phases count."""

USUAL_SD, BELIEVABLE_SD = 2.0, 3.0
"""So many standard deviations from the mean lies what is usual, 95 % of people and scanners; and so many more what is
believable: of one to five scans the deviation itself is uncertain."""

LEAST_WIDENING_HU = 30.0
"""Calibration, kernel and partial volume alone move a median by as much."""


class ScanStatistics(Frozen):
    """The medians (HU) of a structure in scans: how many, their median, standard deviation, least and greatest.

    `spread` is the mean of the scans' own spreads.
    """

    count: int = Field(ge=1)
    median: float
    sd: float = Field(ge=0)
    least: float
    greatest: float
    spread: float = Field(ge=0)


class StructureStatistics(ScanStatistics):
    """Those of all scans, and of the scans of a phase, where it can be told."""

    phases: dict[Phase, ScanStatistics] = Field(default_factory=dict)


class HuReferences(Frozen):
    """`reference_hu.yaml`."""

    source: str
    contrast_hu: float  # an aorta that is brighter is full of contrast medium
    structures: dict[str, StructureStatistics]


class PieceReferences(Frozen):
    """`reference_pieces.yaml`: for each structure, how many real maps show it whole, and its largest piece's share."""

    source: str
    structures: dict[str, tuple[int, float]]


class NeighbourReferences(Frozen):
    """`reference_neighbours.yaml`: for each structure those that it touches in all real maps, and how many."""

    source: str
    structures: dict[str, dict[str, int]]


class HuRange(Frozen):
    """The median HU that a structure usually has, one that is still believable, and where that is from."""

    usual: tuple[float, float]
    believable: tuple[float, float]
    mean: float
    spread: float | None  # within a scan; None where no scan was measured
    source: str


@lru_cache(maxsize=1)
def hu_references() -> HuReferences:
    """The HU that ship with the package."""
    return HuReferences.model_validate(_read("reference_hu.yaml"))


@lru_cache(maxsize=1)
def piece_references() -> PieceReferences:
    """The pieces that ship with the package."""
    return PieceReferences.model_validate(_read("reference_pieces.yaml"))


@lru_cache(maxsize=1)
def neighbour_references() -> NeighbourReferences:
    """The neighbours that ship with the package."""
    return NeighbourReferences.model_validate(_read("reference_neighbours.yaml"))


def hu_range(id: int, vocabulary: Vocabulary, phase: Phase | None = None) -> HuRange | None:
    """What the median HU of a structure is to be, of a contrast phase where that is known; None where nobody knows.

    Its mean and standard deviation are those of the scans and of the vocabulary, weighted by `PRIOR_SCANS`. Usual is
    what lies within `USUAL_SD` of the mean, or was seen in a scan; believable what lies within `BELIEVABLE_SD` more.
    """
    structure = vocabulary.structure(id)
    measured = hu_references().structures.get(structure.name)
    by_phase = None if measured is None or phase is None else measured.phases.get(phase)
    scans: ScanStatistics | None = by_phase if by_phase and by_phase.count >= ENOUGH_SCANS else measured
    if scans is None and structure.hu is None:
        return None
    mean, sd = _mixed(scans, structure.hu)
    usual = mean - USUAL_SD * sd, mean + USUAL_SD * sd
    if scans is not None:
        usual = min(usual[0], scans.least), max(usual[1], scans.greatest)
    far = max(BELIEVABLE_SD * sd, LEAST_WIDENING_HU)
    low, high = (round(each, 1) for each in usual)
    source = _source(scans, phase if scans is by_phase else None, structure.hu is not None)
    return HuRange(
        usual=(low, high),
        believable=(round(low - far, 1), round(high + far, 1)),
        mean=round(mean, 1),
        spread=scans and scans.spread,
        source=source,
    )


def _source(scans: ScanStatistics | None, phase: Phase | None, has_prior: bool) -> str:
    if scans is None:
        return "vocabulary"
    measured = f"{scans.count} scan{'' if scans.count == 1 else 's'}{f' {phase}' if phase else ''}"
    return f"{measured}, vocabulary" if has_prior else measured


def _mixed(scans: ScanStatistics | None, prior: tuple[float, float] | None) -> tuple[float, float]:
    """Mean and standard deviation of scans and of what is known beforehand, which counts as `PRIOR_SCANS`."""
    if scans is None or prior is None:
        assert scans is not None or prior is not None
        return prior or (scans.median, scans.sd)  # type: ignore[union-attr]
    weight = scans.count / (scans.count + PRIOR_SCANS)
    mean = weight * scans.median + (1 - weight) * prior[0]
    spread = weight * scans.sd**2 + (1 - weight) * prior[1] ** 2
    between = weight * (1 - weight) * (scans.median - prior[0]) ** 2
    return mean, (spread + between) ** 0.5


def _read(name: str) -> object:
    return yaml.safe_load(files("maisi.anatomy").joinpath(name).read_text(encoding="utf-8"))
