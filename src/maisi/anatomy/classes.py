"""Label maps of a few classes for a segmentation network: structures renumbered from 1 without gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.space.volume import LabelMap

BACKGROUND_NAME = "background"


@dataclass(frozen=True)
class Classes:
    """Classes by their names, numbered from 1 in this order, and the ids of the vocabulary that each is of."""

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, names: Sequence[str], vocabulary: Vocabulary | None = None) -> "Classes":
        """A class for each name, of a structure (by any of its names) or of a group of structures.

        Raises `InvalidLabelsError` for a name that nobody knows, and for structures that two classes would share.
        """
        vocabulary = vocabulary or load_vocabulary()
        if not names:
            raise InvalidLabelsError("no class is named; accepted: names of structures or groups, such as liver, lungs")
        ids = [_members(name, vocabulary) for name in names]
        seen: dict[int, str] = {}
        for name, members in zip(names, ids, strict=True):
            for id in members:
                if id in seen:
                    raise InvalidLabelsError(
                        f"{vocabulary.name(id)} would be of two classes, {seen[id]} and {name}; accepted: one"
                    )
                seen[id] = name
        called = [
            name if name in vocabulary.groups else vocabulary.name(members[0])
            for name, members in zip(names, ids, strict=True)
        ]
        return cls(tuple(called), tuple(ids))

    @classmethod
    def present(cls, ids: Sequence[int], vocabulary: Vocabulary | None = None) -> "Classes":
        """A class for each of some ids, in their order."""
        vocabulary = vocabulary or load_vocabulary()
        return cls(tuple(vocabulary.name(id) for id in ids), tuple((id,) for id in ids))

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each class by its name, background first."""
        return {BACKGROUND_NAME: 0, **{name: number for number, name in enumerate(self.names, start=1)}}

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(65536, np.uint8)
        for number, members in enumerate(self.ids, start=1):
            table[list(members)] = number
        return table

    def renumbered(self, labels: LabelMap) -> LabelMap:
        """The map in the numbers of the classes, uint8; what is of no class is background."""
        return LabelMap(self._table[labels.array], labels.grid)


def _members(name: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of a group by its name, or of a structure by any of its names."""
    if name in vocabulary.groups or not vocabulary.knows(name):
        return vocabulary.members(name)
    return (vocabulary.find(name),)
