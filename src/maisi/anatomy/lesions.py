"""Label maps without their lesions, and without the names of some structures."""

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from maisi.anatomy.morphology import parts
from maisi.anatomy.vocabulary import BACKGROUND, DECLARED, Vocabulary
from maisi.errors import InvalidLabelsError

LESIONS = ("tumours", "cysts")
"""Groups whose structures are no part of a healthy body."""


def lesion_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of everything that grows in something else: tumours, cysts, and declared classes that have a host."""
    found = {id for group in LESIONS for id in vocabulary.group(group)}
    declared = {s.id for s in vocabulary.structures if DECLARED in s.groups and s.host is not None}
    return tuple(sorted(found | declared))


def healthy_ids(vocabulary: Vocabulary, id: int) -> tuple[int, ...]:
    """What a structure may become where it is removed: its host, the members of a group of hosts, else plain body."""
    host = vocabulary.structure(id).host or "body"
    return tuple(each for each in vocabulary.members(host) if each != id)


def without_structures(labels: np.ndarray, ids: Iterable[int], vocabulary: Vocabulary) -> np.ndarray:
    """The label map with every voxel of the structures `ids` as what would be there without them, see `healthy_ids`.

    Where there are several hosts, each part of a structure becomes the one that fills most of the ring of voxels around
    it: a lung tumour its lobe, a bone lesion its bone. Without any in the ring it is the host that fills most of the
    map, without any at all plain body.
    """
    result = labels.copy()
    removed = set(ids)
    counts = np.bincount(labels.ravel(), minlength=256)
    for id in sorted(removed):
        if not counts[id]:
            continue
        hosts = [each for each in healthy_ids(vocabulary, id) if each not in removed]
        if len(hosts) == 1:
            result[labels == id] = hosts[0]
        else:
            body = vocabulary.id("body")
            usual = max(hosts, key=lambda id: counts[id], default=body)
            _fill_parts(result, labels == id, hosts, usual if counts[usual] else body)
    return result


def _fill_parts(result: np.ndarray, lesion: np.ndarray, hosts: list[int], usual: int = BACKGROUND) -> None:
    """Fill each part of a lesion by the commonest host around it, else by the usual one; by background none."""
    numbered, _ = parts(lesion)
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        inside = numbered[around] == number
        ring = ndimage.binary_dilation(inside, np.ones((3, 3, 3), bool)) & ~lesion[around]
        nearby = np.bincount(result[around][ring], minlength=256)
        best = max(hosts, key=lambda id: nearby[id], default=usual)
        if (chosen := best if nearby[best] else usual) != BACKGROUND:
            result[around][inside] = chosen


def healed(labels: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The label map with each part of a mask as what is healthy there.

    A lesion that has a name becomes one of its hosts, see `without_structures`; what is left of the mask, the commonest
    structure around it that is no lesion itself. Where that is none, as in a map that names the structures of another
    part of the body alone, the labels stay as they are.
    """
    lesions = lesion_ids(vocabulary)
    inside = np.unique(labels[mask])
    named = without_structures(labels, set(inside.tolist()) & set(lesions), vocabulary)
    result = np.where(mask, named, labels)
    is_open = mask & ~np.isin(labels, lesions)
    if is_open.any():
        counts = np.bincount(result.ravel(), minlength=256)
        hosts = [int(id) for id in np.flatnonzero(counts) if id not in lesions]
        _fill_parts(result, is_open, hosts)
    return result


def unnamed(labels: np.ndarray, ids: Iterable[int], vocabulary: Vocabulary) -> np.ndarray:
    """The label map with the structures `ids` as plain body, as in a map whose author did not name them."""
    gone = np.zeros(256, bool)
    gone[list(ids)] = True
    if gone[BACKGROUND]:
        raise InvalidLabelsError("background is no structure that could go unnamed")
    return np.where(gone[labels], labels.dtype.type(vocabulary.id("body")), labels)
