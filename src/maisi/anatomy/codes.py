"""Standard codes of structures, read from `codes.yaml`."""

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import Field

from maisi.anatomy.vocabulary import Structure, Vocabulary
from maisi.shapes import Frozen
from maisi.space.segments import Code, Coding, Segment

PRIVATE_SCHEME = "99MAISI"  # codes of classes that a bundle adds, by their ids


class _Row(Frozen):
    value: str
    meaning: str
    within: str | None = Field(default=None, alias="in")

    @property
    def code(self) -> Code:
        return Code(value=self.value, meaning=self.meaning)


class _Table(Frozen):
    """`codes.yaml`."""

    categories: dict[str, Code]
    category: Code
    category_of: dict[str, Code]
    laterality: dict[str, Code]
    structures: dict[str, _Row]


def segments_of(ids: Iterable[int], vocabulary: Vocabulary) -> tuple[Segment, ...]:
    """The structures of these ids, ascending, with their codes."""
    return tuple(segment_of(vocabulary.structure(id)) for id in sorted(ids))


def segment_of(structure: Structure) -> Segment:
    """A structure with its codes; one of a bundle's own has a private code of its id."""
    table = _table()
    side, _, base = structure.name.partition(" ")
    laterality = table.laterality.get(side)
    row = table.structures.get(structure.name)
    if row is not None:
        laterality = None
    elif laterality is not None:
        row = table.structures.get(base)
    if row is None:
        own = Code(value=str(structure.id), meaning=structure.name[:64], scheme=PRIVATE_SCHEME)
        return _segment(structure, category=_category(structure, table), type=own)
    if row.within is None:
        return _segment(structure, category=_category(structure, table), type=row.code, laterality=laterality)
    region = table.structures[row.within].code
    category = _category(structure, table)
    return _segment(structure, category=category, type=row.code, region=region, region_laterality=laterality)


def name_coded(coding: Coding, vocabulary: Vocabulary) -> str | None:
    """The structure of the vocabulary that has these codes; None where none has, or several."""
    found = [each.name for each in vocabulary.structures if segment_of(each).key == coding.key]
    return found[0] if len(found) == 1 else None


def _segment(structure: Structure, **codes: Any) -> Segment:
    return Segment(id=structure.id, name=structure.name, colour=structure.colour, **codes)


def _category(structure: Structure, table: _Table) -> Code:
    if structure.name in table.category_of:
        return table.category_of[structure.name]
    return next((table.categories[group] for group in structure.groups if group in table.categories), table.category)


@lru_cache(maxsize=1)
def _table() -> _Table:
    text = files("maisi.anatomy").joinpath("codes.yaml").read_text(encoding="utf-8")
    return _Table.model_validate(yaml.safe_load(text))
