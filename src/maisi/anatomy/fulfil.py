"""A label map changed into what was asked for: what is not to be there goes, organs get their sizes, tumours grow."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from maisi.anatomy.lesions import healthy_ids, lesion_ids, without_structures
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.resize import is_cut, mask_of, members_of, removed, resized, volume_ml
from maisi.anatomy.sizes import size_rules
from maisi.anatomy.tumours import plant
from maisi.errors import InvalidAnatomyError, InvalidRequestError
from maisi.space.volume import LabelMap

Obtained: TypeAlias = dict[int, float]
"""Volumes (ml) by id."""


@dataclass(frozen=True)
class Fulfilled:
    """A label map that shows what was asked for, and the volumes (ml) that it was measured to have, by id."""

    labels: LabelMap
    asked: Obtained
    obtained: Obtained


def check_labels(labels: LabelMap, request: AnatomyRequest) -> None:
    """Nothing, or the refusal of a label map that cannot show what is asked for, told before anything is changed."""
    vocabulary = request.vocabulary
    present = frozenset(vocabulary.check_ids(labels.array))
    lacking = [name for name, ids in needed(request).items() if present.isdisjoint(ids)]
    if lacking:
        raise InvalidAnatomyError(
            f"the label map has no {' and no '.join(lacking)}; organs are changed, not made; accepted: a map that does"
        )
    for id in request.organs:
        if is_cut(mask_of(labels, id, vocabulary), labels):
            name = vocabulary.name(id)
            raise InvalidAnatomyError(
                f"the border of the field of view cuts the {name}: its volume is not known; accepted: {name}=any, or a "
                "field of view that holds it"
            )


def needed(request: AnatomyRequest) -> dict[str, frozenset[int]]:
    """What has to be in a map that is changed into what was asked for, by name: one of these ids each.

    Organs, and of lesions what they grow in; a lesion that may be of any size may be there itself.
    """
    vocabulary = request.vocabulary
    organs = {vocabulary.name(id): frozenset(members_of(id, vocabulary)) for id in request.wanted - request.lesions}
    hosts = {}
    for id in request.lesions:
        itself = request.present & {id}
        host = vocabulary.structure(id).host or "body"
        hosts[host] = frozenset(healthy_ids(vocabulary, id)) - request.absent | itself
    return dict(sorted({**organs, **hosts}.items()))


def fulfil(labels: LabelMap, request: AnatomyRequest, rng: np.random.Generator) -> Fulfilled:
    """A label map with what was asked for, and with no lesion that was not.

    Lesions that are there and may be of any size stay. Organs are brought to their volumes and measured, lesions
    planted into them. Raises `InvalidAnatomyError` for what the map cannot show, or does not after all.
    """
    check_labels(labels, request)
    vocabulary = request.vocabulary
    labels = LabelMap(labels.array.astype(np.uint8), labels.grid)
    staying = request.present & request.lesions
    gone = [id for id in lesion_ids(vocabulary) if id not in staying]
    labels = LabelMap(without_structures(labels.array, gone, vocabulary), labels.grid)
    for id in sorted(request.absent):
        labels = removed(labels, id, vocabulary)
    labels = _sized(labels, request)
    obtained = {id: volume_ml(mask_of(labels, id, vocabulary), labels) for id in request.organs}
    for id in sorted(request.lesions):
        if id in staying and (labels.array == id).any():
            continue
        labels = _planted(labels, id, request, rng)
    obtained |= {id: volume_ml(labels.array == id, labels) for id in request.lesions}
    _check_obtained(labels, request, obtained)
    return Fulfilled(labels, dict(request.sized), obtained)


def _sized(labels: LabelMap, request: AnatomyRequest) -> LabelMap:
    """The organs at their volumes; those that shrink go first and make room."""
    vocabulary = request.vocabulary

    def growth(id: int) -> float:
        return request.organs[id] / max(volume_ml(mask_of(labels, id, vocabulary), labels), 1e-6)

    order = sorted(request.organs, key=growth)
    for id in order:
        labels = resized(labels, id, request.organs[id], vocabulary, keep=[each for each in order if each != id])
    return labels


def _planted(labels: LabelMap, id: int, request: AnatomyRequest, rng: np.random.Generator) -> LabelMap:
    """With a lesion of the volume asked for, or of one drawn from its row of `tumours.yaml`."""
    try:
        return plant(labels, id, rng, volume_ml=request.sized.get(id), vocabulary=request.vocabulary)
    except InvalidRequestError as error:
        raise InvalidAnatomyError(str(error)) from error


def _check_obtained(labels: LabelMap, request: AnatomyRequest, obtained: Obtained) -> None:
    """Nothing, or an `InvalidAnatomyError` that tells what came out otherwise than it was asked."""
    vocabulary, change = request.vocabulary, size_rules().change
    present = set(vocabulary.check_ids(labels.array))
    wrong = [f"{vocabulary.name(id)} is still there" for id in sorted(request.absent & present)]
    unasked = (set(lesion_ids(vocabulary)) & present) - request.lesions
    wrong += [f"{vocabulary.name(id)} appeared" for id in sorted(unasked)]
    for id in sorted(request.wanted):
        if present.isdisjoint(members_of(id, vocabulary)):
            wrong.append(f"{vocabulary.name(id)} is not there")
    for id, ml in request.sized.items():
        within = change.tolerance * ml
        if id in request.lesions:
            within = max(change.lesion_tolerance * ml, float(np.prod(labels.grid.spacing)) / 1000)  # as it is planted
        if abs(obtained[id] - ml) > within:
            wrong.append(f"{vocabulary.name(id)} is of {obtained[id]:.3g} ml, not {ml:.3g}")
    if wrong:
        raise InvalidAnatomyError(f"the label map does not show what was asked: {'; '.join(wrong)}")
