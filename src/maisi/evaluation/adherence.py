"""How well a volume shows the label map that was asked for, judged by Hounsfield units alone."""

import numpy as np

from maisi.anatomy.body import tissue_labels
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidVolumeError
from maisi.shapes import Frozen
from maisi.space.volume import LabelMap, Volume, check_same_grid

BODY_HU = -400.0
"""What is brighter is tissue, what is darker is air or lung."""

CONTRAST = ("vessels", "heart", "kidneys")
"""Structures that contrast medium makes as bright as bone."""


class Adherence(Frozen):
    """Dice of tissue classes between HU thresholds and the label map; None where the map has none of the class."""

    body: float | None
    bones: float | None
    skeleton: float | None
    lungs: float | None
    outside: float | None


def adherence(volume: Volume, labels: LabelMap) -> Adherence:
    """Dice of body (tissue and what lies in it), bones in two ways, lungs with other inner air, and outside air.

    Body and outside are told apart by -400 HU where the map says outside or tissue, lungs and inner air by the same
    threshold within the body of the map. Bones are what is brighter than the vocabulary's threshold of bone within the
    body of the map; what the map names as full of contrast medium (`CONTRAST`) is not judged. The skeleton is what
    `tissue_labels` finds without looking at the map: as bright and not as even as contrast medium, with dim bone beside
    it and marrow. Real scans score 1 in neither. Raises `InvalidLabelsError` where the grids differ.
    """
    check_same_grid(labels, volume)
    vocabulary, hu, ids = load_vocabulary(), volume.array, labels.array
    gas = np.isin(ids, [*vocabulary.group("lungs"), *vocabulary.group("airways"), vocabulary.id("air")])
    inside = ids > 0
    dense, bones = hu > BODY_HU, np.isin(ids, vocabulary.group("bones"))
    plain = inside & ~np.isin(ids, [id for name in CONTRAST for id in vocabulary.members(name)])
    return Adherence(
        body=_dice((dense & ~gas) | (gas & inside), inside),
        bones=_dice(plain & (hu >= vocabulary.tissues["bone"][0]), bones),
        skeleton=_dice(_skeleton(volume), bones),
        lungs=_dice(~dense & inside, gas),
        outside=_dice(~dense & ~gas, ~inside),
    )


def _skeleton(volume: Volume) -> np.ndarray:
    try:
        return tissue_labels(volume).array == load_vocabulary().id("skeleton")
    except InvalidVolumeError:  # no body, so no bone
        return np.zeros(volume.grid.shape, bool)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap 2 |a and b| / (|a| + |b|) of two masks; 1 where both are empty."""
    size = int(a.sum()) + int(b.sum())
    return 1.0 if size == 0 else 2.0 * int((a & b).sum()) / size


def _dice(found: np.ndarray, asked: np.ndarray) -> float | None:
    return dice(found, asked) if asked.any() else None
