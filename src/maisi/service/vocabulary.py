"""The structures that requests may name, as clients are told of them. Imports no torch."""

from functools import lru_cache
from typing import Any

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.sizes import has_scale, is_fixed
from maisi.anatomy.vocabulary import Structure, Vocabulary, load_vocabulary


@lru_cache(maxsize=1)
def structures() -> list[dict[str, Any]]:
    """Every structure by ascending id, without the numbers that are reserved and never filled."""
    vocabulary = load_vocabulary()
    lesions = set(lesion_ids(vocabulary))
    return [
        _told(structure, vocabulary, structure.id in lesions)
        for structure in sorted(vocabulary.structures, key=lambda each: each.id)
        if not structure.is_dummy
    ]


def _told(structure: Structure, vocabulary: Vocabulary, is_lesion: bool) -> dict[str, Any]:
    names = (structure.name, structure.totalseg, structure.vista, *structure.aliases)
    is_sized = has_scale(structure.id, vocabulary) and not is_fixed(structure.id, vocabulary)
    return {
        "id": structure.id,
        "name": structure.name,
        "names": list(dict.fromkeys(name for name in names if name)),
        "group": structure.groups[0] if structure.groups else "",
        "groups": list(structure.groups),
        "colour": "#{:02x}{:02x}{:02x}".format(*structure.colour),
        "tumour": is_lesion,
        "host": _hosts(structure, vocabulary),
        "region": structure.region,
        "sized": is_sized,
    }


def _hosts(structure: Structure, vocabulary: Vocabulary) -> list[str]:
    """Names of what a tumour grows in."""
    if structure.host is None:
        return []
    return [vocabulary.name(id) for id in vocabulary.members(structure.host)]
