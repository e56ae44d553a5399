"""Whether a segmenter finds in a generated CT what its labels say."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from maisi.anatomy.measure import Extent, extents
from maisi.bundle.bundle import load_bundle
from maisi.pipelines import segment
from maisi.pipelines.prepare.segmenter import segmented
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.pipelines.quality.labels import Findings
from maisi.pipelines.quality.report import Finding, Level
from maisi.pipelines.quality.settings import QualitySettings
from maisi.pipelines.segment import NetworkSegmenter
from maisi.space.volume import LabelMap, Volume, check_same_grid

SMALL_ML = 10.0
"""Of what is smaller, a low Dice fails nothing: half a voxel at its surface is much of it."""


@runtime_checkable
class Segmenter(Protocol):
    """Labels a CT: a map in our ids, on the volume's grid."""

    def __call__(self, volume: Volume) -> LabelMap: ...


@dataclass(frozen=True)
class CommandSegmenter:
    """A segmenter that is a command: `{image}` is the CT that it reads, `{labels}` what it writes."""

    command: str
    numbering: str | None = None
    minutes: float = 60.0

    def __call__(self, volume: Volume) -> LabelMap:
        settings = PrepareSettings(
            segmenter=self.command, segmenter_numbering=self.numbering, segmenter_minutes=self.minutes
        )
        return segmented(volume, settings)


def segmenter_of(settings: QualitySettings, device: str = "cpu") -> Segmenter | None:
    """The segmenter that generated CTs are shown to; None without one.

    Raises `InvalidBundleError` for a bundle that there is not, or that holds no segmenter.
    """
    if settings.segmenter is None:
        return None
    if settings.is_command:
        return CommandSegmenter(settings.segmenter, settings.segmenter_numbering, settings.segmenter_minutes)
    return _of_bundle(settings.segmenter, device)


@lru_cache(maxsize=1)  # every sample of a run is shown to the same
def _of_bundle(name: str, device: str) -> NetworkSegmenter:
    return segment.segmenter_of(load_bundle(name, torch.device(device)))


@dataclass(frozen=True)
class Overlap:
    """The volume (ml) that a segmenter found of a structure, and its Dice with the labels."""

    ml: float
    dice: float


def compared(segmenter: Segmenter, volume: Volume, labels: LabelMap) -> dict[int, Overlap]:
    """By id, how far what a segmenter finds in a volume agrees with its labels, as far as it tells them apart."""
    found = segmenter(volume)
    if not isinstance(segmenter, NetworkSegmenter):
        return overlaps(labels, found)
    present = extents(labels)
    as_told = segmenter.written(segmenter.classes_of(labels))
    return {id: each for id, each in overlaps(as_told, found).items() if id in present}


def overlaps(labels: LabelMap, found: LabelMap) -> dict[int, Overlap]:
    """By id, how far the map that a segmenter made agrees with labels on its grid; what is in one alone has Dice 0."""
    check_same_grid(found, labels)
    asked, got = extents(labels), extents(found)
    same = np.bincount(labels.array[labels.array == found.array].ravel(), minlength=256)
    return {
        id: Overlap(
            got[id].ml if id in got else 0.0,
            float(2 * same[id] / (asked[id].voxels + (got[id].voxels if id in got else 0))),
        )
        for id in asked
    }


def dice_findings(
    found: Mapping[int, Overlap], sizes: Mapping[int, Extent], held: Collection[int], least: float
) -> Findings:
    """Structures of which a segmenter finds less than that Dice. What it never found it may not know: that is told."""
    findings: Findings = defaultdict(list)
    for id, overlap in found.items():
        if overlap.ml == 0:
            findings[id].append(Finding(check="dice", level="info", words="the segmenter does not find it, or know it"))
        elif overlap.dice < least:
            level: Level = "fail" if id in held and sizes[id].ml >= SMALL_ML else "info"
            words = f"Dice {overlap.dice:.2f} with what the segmenter finds; at least {least:.2f}"
            findings[id].append(Finding(check="dice", level=level, words=words))
    return findings
