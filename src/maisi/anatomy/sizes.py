"""Sizes of structures in millilitres, and the rules by which structures change theirs: `sizes.yaml`."""

from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import Field

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen


class Scale(Frozen):
    """How sizes from 0 to 1 become volumes."""

    default_spread: float = Field(gt=1)
    spread: dict[str, float]
    lesion_ml: float = Field(gt=0)
    lesion_spread: float = Field(gt=1)


class Giving(Frozen):
    """How dear a mm of a structure is to one that grows, and the most that it gives of its volume."""

    weight: float = Field(ge=1)
    share: float = Field(gt=0, le=1)


class ChangeRules(Frozen):
    """How structures grow and shrink; lengths in mm."""

    tolerance: float = Field(gt=0)
    lesion_tolerance: float = Field(gt=0)
    reach_mm: float = Field(gt=0)
    smooth_mm: float = Field(ge=0)
    skin_mm: float = Field(ge=0)
    wall_mm: float = Field(ge=0)
    cut: float = Field(gt=0)
    gives: dict[str, Giving]
    fills: tuple[str, ...]


class SizeRules(Frozen):
    """`sizes.yaml`."""

    scale: Scale
    fixed_groups: tuple[str, ...]
    fixed: tuple[str, ...]
    lesion_share: float = Field(gt=0, lt=1)
    view_share: float = Field(gt=0, lt=1)
    change: ChangeRules


@lru_cache(maxsize=1)
def size_rules() -> SizeRules:
    """The rules that ship with the package."""
    text = files("maisi.anatomy").joinpath("sizes.yaml").read_text(encoding="utf-8")
    return SizeRules.model_validate(yaml.safe_load(text))


def has_scale(id: int, vocabulary: Vocabulary) -> bool:
    """Whether a size from 0 to 1 says a volume: the usual one is known, or the structure is a lesion."""
    return id in vocabulary.places_by_id or id in lesion_ids(vocabulary)


def volume_of_size(id: int, size: float, vocabulary: Vocabulary) -> float:
    """The volume (ml) that a size from 0 to 1 says: usual * spread ** (2 size - 1), see `sizes.yaml`."""
    scale, name = size_rules().scale, vocabulary.name(id)
    if id in lesion_ids(vocabulary):
        return float(scale.lesion_ml * scale.lesion_spread ** (2 * size - 1))
    usual = vocabulary.places_by_id[id].ml[0]
    return float(usual * scale.spread.get(name, scale.default_spread) ** (2 * size - 1))


def is_fixed(id: int, vocabulary: Vocabulary) -> bool:
    """Whether a structure has the size that the body gives it, and no other can be asked for."""
    rules, structure = size_rules(), vocabulary.structure(id)
    return structure.name in rules.fixed or bool({*structure.groups} & {*rules.fixed_groups})
