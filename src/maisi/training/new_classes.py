"""Classes that a recipe adds to the vocabulary, by name; the weights that there are know nothing of it.

A ControlNet reads the eight bits of an id, and eight bits spell every id that there may be: a new class needs no new
weight and changes none, so that what a bundle made of the old ids it makes to the bit until it learns.
"""

from collections.abc import Mapping

from pydantic import Field

from maisi.anatomy.vocabulary import (
    DECLARED,
    DUMMIES,
    MAX_ID,
    MIN_ID,
    ClassDeclaration,
    Vocabulary,
    extended,
    load_vocabulary,
)
from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen


class NewClass(Frozen):
    """A class on a free id; host, groups, region and HU are those of the structure that it is `like`.

    Without an id it gets the free one whose bits differ least from those of `like`: the first convolution reads bits,
    so that the class starts nearly as that structure does.
    """

    id: int | None = Field(default=None, ge=MIN_ID, le=MAX_ID)
    like: str | None = None
    host: str | None = None  # structure or group that it grows in, where that is not the host of `like`


def numbered(classes: Mapping[str, NewClass]) -> dict[int, str]:
    """The names of the classes by id, as a bundle keeps them."""
    vocabulary = load_vocabulary()
    taken = {each.id for each in classes.values() if each.id is not None}
    found: dict[int, str] = {}
    for name, each in classes.items():
        id = _nearest_free(vocabulary, name, each, taken) if each.id is None else each.id
        if id in found:
            raise InvalidConfigError(f"classes {found[id]!r} and {name!r} have one id, {id}; give each its own")
        taken.add(id)
        found[id] = name
    return found


def vocabulary_with(classes: Mapping[str, NewClass]) -> Vocabulary:
    """The vocabulary with the classes; `InvalidConfigError` for ids and names that are taken, and unknown likes."""
    vocabulary = load_vocabulary()
    if not classes:
        return vocabulary
    declared = {id: _declaration(vocabulary, name, classes[name]) for id, name in numbered(classes).items()}
    return extended(vocabulary, declared)


def _declaration(vocabulary: Vocabulary, name: str, new: NewClass) -> ClassDeclaration:
    if new.like is None:
        return ClassDeclaration(name=name, host=new.host)
    like = vocabulary.structure(_known(vocabulary, name, new.like))
    return ClassDeclaration(
        name=name,
        region=like.region,
        groups=(*like.groups, DECLARED),
        host=new.host or like.host,
        hu=like.hu,
    )


def _known(vocabulary: Vocabulary, name: str, like: str) -> int:
    if not vocabulary.knows(like) or DUMMIES in vocabulary.structure(vocabulary.find(like)).groups:
        raise InvalidConfigError(f"class {name!r} is like {like!r}, which the vocabulary does not know")
    return vocabulary.find(like)


def _nearest_free(vocabulary: Vocabulary, name: str, new: NewClass, taken: set[int]) -> int:
    dummies = vocabulary.group(DUMMIES)
    free = [id for id in range(MIN_ID, MAX_ID + 1) if id not in taken and (id not in vocabulary.ids or id in dummies)]
    if not free:
        raise InvalidConfigError(f"class {name!r} needs an id, but none of {MIN_ID} to {MAX_ID} is free")
    like = 0 if new.like is None else _known(vocabulary, name, new.like)
    return min(free, key=lambda id: ((id ^ like).bit_count() if like else 0, id in dummies, id))
