"""Sizes of organs and tumours as the numbers that a label generator is told: a slot for each structure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np
import yaml

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.space.volume import LabelMap, id_counts

ABSENT = -1.0
"""The size of what is not in a map, as the released label generator was told it."""

OPEN = -2.0
"""The size of what may be as it likes; a generator knows it where it was trained so."""


@lru_cache(maxsize=1)
def full_volumes() -> Mapping[str, float]:
    """The volume (ml) that size 1 stands for, by the name of the structure, in the generator's order."""
    text = files("maisi.anatomy").joinpath("slots.yaml").read_text(encoding="utf-8")
    return {str(name): float(ml) for name, ml in yaml.safe_load(text)["full_ml"].items()}


def size_of(name: str, ml: float) -> float:
    """The size of a structure of that volume (ml); what is larger than size 1 is 1."""
    return min(1.0, ml / full_volumes()[name])


def volume_of(name: str, size: float) -> float:
    """The volume (ml) of a structure of that size."""
    return size * full_volumes()[name]


def measured_sizes(labels: LabelMap, names: Sequence[str]) -> dict[str, float]:
    """The size of each of these structures in a label map; `ABSENT` for what it does not show."""
    vocabulary, counts = load_vocabulary(), id_counts(labels.array)
    voxel_ml = float(np.prod(labels.grid.spacing)) / 1000
    found = {name: vocabulary.id(name) for name in names}
    volumes = {name: counts[id] * voxel_ml if id < len(counts) else 0.0 for name, id in found.items()}
    return {name: size_of(name, ml) if ml else ABSENT for name, ml in volumes.items()}


def check_sizes(sizes: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise `InvalidRequestError` for a structure without a size, or a size that is none."""
    for name, size in sizes.items():
        if name not in names:
            raise InvalidRequestError(f"{name!r} has no size here; accepted: {', '.join(names)}")
        if not (0 <= size <= 1 or size in (ABSENT, OPEN)):
            raise InvalidRequestError(f"the size of {name} is {size:g}; accepted: 0 to 1, or {ABSENT:g} for none")
