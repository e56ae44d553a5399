"""Body regions, and the span of regions that a label map covers."""

from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

import numpy as np

from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.space.volume import LabelMap


class BodyRegion(Enum):
    """The four regions from top to bottom; the value is the place in the network's one-hot vector."""

    HEAD = 0
    CHEST = 1
    ABDOMEN = 2
    LOWER = 3

    @classmethod
    def named(cls, name: str) -> "BodyRegion":
        """The region of that name or alias, in any case; raises InvalidRequestError."""
        aliases = _aliases()
        folded = name.strip().lower()
        if folded not in aliases:
            close = get_close_matches(folded, aliases, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidRequestError(f"unknown body region {name!r}; {hint}accepted: {', '.join(sorted(aliases))}")
        return aliases[folded]


@dataclass(frozen=True)
class RegionSpan:
    """The topmost and the bottommost region that a volume shows."""

    top: BodyRegion
    bottom: BodyRegion

    def __post_init__(self) -> None:
        if self.top.value > self.bottom.value:
            raise InvalidRequestError(f"{self.top.name.lower()} is not above {self.bottom.name.lower()}; swap them")

    @classmethod
    def named(cls, top: str, bottom: str | None = None) -> "RegionSpan":
        """The span between two named regions, or of one."""
        return cls(BodyRegion.named(top), BodyRegion.named(bottom if bottom is not None else top))

    @property
    def regions(self) -> tuple[BodyRegion, ...]:
        """All regions of the span from top to bottom."""
        return tuple(BodyRegion(value) for value in range(self.top.value, self.bottom.value + 1))

    def one_hots(self) -> tuple[np.ndarray, np.ndarray]:
        """One-hot vectors of the top and the bottom region, float32 (4,) each."""
        eye = np.eye(len(BodyRegion), dtype=np.float32)
        return eye[self.top.value], eye[self.bottom.value]


def region_span(labels: LabelMap, vocabulary: Vocabulary | None = None) -> RegionSpan:
    """The span of regions that a label map shows.

    The markers of `vocabulary.yaml` decide, as they do for the released networks; where none is present the region of
    every other structure does. Raises InvalidLabelsError when nothing present tells a region.
    """
    vocabulary = vocabulary or load_vocabulary()
    present = set(vocabulary.check_ids(labels.array))
    marked = [region for region in BodyRegion if present & _marker_ids(vocabulary, region)]
    found = marked or _regions_of(vocabulary, present)
    if not found:
        names = ", ".join(vocabulary.name(id) for id in sorted(present)) or "nothing"
        raise InvalidLabelsError(
            f"these labels tell no body region (found: {names}); name the region, or label an organ such as "
            "brain, a lung, liver or a femur"
        )
    return RegionSpan(found[0], found[-1])


def _marker_ids(vocabulary: Vocabulary, region: BodyRegion) -> set[int]:
    return {vocabulary.id(name) for name in vocabulary.regions[region.name.lower()].markers}


def _regions_of(vocabulary: Vocabulary, present: set[int]) -> list[BodyRegion]:
    names = {vocabulary.structure(id).region for id in present}
    return [region for region in BodyRegion if region.name.lower() in names]


def _aliases() -> dict[str, BodyRegion]:
    regions = load_vocabulary().regions
    return {
        name: region for region in BodyRegion for name in (region.name.lower(), *regions[region.name.lower()].aliases)
    }
