"""The classes that a segmenter tells apart, and what a label map of some structures says of each of them.

Most label maps name a few structures. A voxel that has none of them is then no background: it may be any structure that
nobody looked for. So each id of a map stands for the set of classes that may be there, and a loss takes the probability
of the whole set (marginal loss; Shi et al., arXiv 2007.03868).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary
from maisi.errors import InvalidConfigError
from maisi.networks.segmenter import SegmentedClass

OUTSIDE = "outside"
"""What channel 0 of a segmenter tells: air around the body."""

_COARSE, _REST, _BONES, _BONE, _LUNGS = "tissues", "body", "bones", "skeleton", "lungs"
_HOLLOW = ("bowel", "airways")  # groups whose structures hold air


def segmented_classes(members: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> tuple[SegmentedClass, ...]:
    """Classes by name, each of the structures and groups that are listed, or without any of those of its own name.

    A structure that a class names itself is left out of the groups of others, and of two groups the first has it. What
    a class is written as is the structure of its name, else the tissue that its structures are part of, else the first
    of them. Raises `InvalidConfigError` for a name that nobody knows, a class without structures, and where no class
    holds the body.
    """
    named = {name: tuple(given) or (name,) for name, given in members.items()}
    single = {
        id for each in named.values() for part in each if part in vocabulary.names for id in [vocabulary.id(part)]
    }
    taken: set[int] = set()
    classes = []
    for name, parts in named.items():
        own = [vocabulary.id(part) for part in parts if part in vocabulary.names]
        of_groups = [id for part in parts if part not in vocabulary.names for id in vocabulary.members(part)]
        ids = tuple(dict.fromkeys([*own, *(id for id in of_groups if id not in single | taken)]))
        if not ids or set(ids) & taken:
            raise InvalidConfigError(f"class {name!r} has no structure that no other class has")
        taken |= set(ids)
        classes.append(SegmentedClass(name=name, ids=ids, written_as=_written_as(name, ids, vocabulary)))
    if vocabulary.id(_REST) not in taken:
        raise InvalidConfigError(f"no class holds {_REST!r}, the rest of the body")
    return tuple(classes)


def _written_as(name: str, ids: Sequence[int], vocabulary: Vocabulary) -> int:
    if name in vocabulary.names:
        return vocabulary.id(name)
    for tissue in (_LUNGS, _BONE):
        if set(ids) <= set(_part_of(tissue, vocabulary)):
            return vocabulary.id(tissue)
    return ids[0]


def _part_of(tissue: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The structures that a coarse tissue may be: bones for the skeleton, lobes for the lungs, itself for others."""
    groups = [group for group in vocabulary.structure(tissue).groups if group != _COARSE]
    return vocabulary.group(groups[0]) if groups else (vocabulary.id(tissue),)


def class_map(ids: np.ndarray, classes: Sequence[SegmentedClass], vocabulary: Vocabulary) -> np.ndarray:
    """The channel of each voxel's class, uint8: 0 outside; structures of no class count as the rest of the body."""
    table = np.zeros(256, np.uint8)
    table[list(vocabulary.ids)] = _channel(classes, vocabulary.id(_REST))
    for channel, each in enumerate(classes, start=1):
        table[list(each.ids)] = channel
    return table[ids]


def admissible(classes: Sequence[SegmentedClass], looked_for: Collection[int], vocabulary: Vocabulary) -> np.ndarray:
    """Which classes a voxel of each id may be: boolean (256, 1 + classes), where `looked_for` were looked for.

    A class was looked for where one of its structures was. The map names the tissue of every voxel of the body, see
    `anatomy.body.complete_labels`: body (soft tissue) may be any class that was not looked for but lung, the skeleton
    any such bone, air any such bowel or airway; fat is the rest of the body.
    """
    found = np.zeros((256, 1 + len(classes)), bool)
    found[BACKGROUND, 0] = True
    missed = [k for k, each in enumerate(classes, start=1) if not set(each.ids) & set(looked_for)]
    rest = _channel(classes, vocabulary.id(_REST))
    lungs = _channels(classes, vocabulary.group(_LUNGS))
    bones = _channels(classes, vocabulary.group(_BONES))
    bone = _channel(classes, vocabulary.id(_BONE)) or rest
    hollow = _channels(classes, [id for group in _HOLLOW for id in vocabulary.group(group)])
    sets: dict[str, Collection[int]] = {
        _REST: {rest, *missed} - lungs,
        "fat": {rest},
        "air": {rest, *(k for k in missed if k in hollow)},
        _BONE: {bone, *(k for k in missed if k in bones)},
        _LUNGS: {k for k in missed if k in lungs} or lungs or {rest},
    }
    for structure in vocabulary.structures:
        own = _channel(classes, structure.id)
        if structure.name in sets:
            channels = {own} - {0} | set(sets[structure.name])
        elif own:
            channels = {own}
        elif structure.host is not None:
            channels = _channels(classes, vocabulary.members(structure.host)) or {rest}
        elif structure.id in vocabulary.group("targets") or structure.is_dummy:
            channels = set(range(1, 1 + len(classes)))  # drawn over whatever is there
        else:
            channels = {bone if structure.id in vocabulary.group(_BONES) else rest}
        found[structure.id, sorted(channels)] = True
    return found


def known_masks(
    found: np.ndarray, ids: np.ndarray, admissible: np.ndarray, channel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a map of ids is known to hold a class, and where a map of channels says so, both boolean.

    Voxels of which the map of ids does not tell whether they are of the class are in neither.
    """
    may_be, certain = admissible[:, channel], admissible.sum(axis=1) == 1
    truth, unknown = (may_be & certain)[ids], (may_be & ~certain)[ids]
    return truth, (found == channel) & ~unknown


def _channel(classes: Sequence[SegmentedClass], id: int) -> int:
    """The channel of the class that holds an id; 0 where none does."""
    return next((k for k, each in enumerate(classes, start=1) if id in each.ids), 0)


def _channels(classes: Sequence[SegmentedClass], ids: Collection[int]) -> set[int]:
    return {k for k, each in enumerate(classes, start=1) if set(each.ids) & set(ids)}
