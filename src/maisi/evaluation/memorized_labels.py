"""Whether generated label maps are copies: the nearest training map of each, shifted, scaled or mirrored."""

from collections.abc import Callable, Sequence

import numpy as np

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.evaluation.neighbours import Neighbour, Neighbours, judged, usual_distance
from maisi.evaluation.sets import NamedLabels
from maisi.space.volume import LabelMap


def find_copied_labels(
    generated: Sequence[NamedLabels],
    training: Sequence[NamedLabels],
    held_out: Sequence[NamedLabels],
    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Neighbours:
    """The neighbours by one less the mean Dice of the structures, once one map was laid over the other (`Likeness`).

    The features are volumes of structures: the least distance that they allow.
    """
    there = []
    for k, each in enumerate(training, start=1):
        there.append((each.name, Likeness.of(each.read())))
        on_stage("label maps", k, len(training))
    found, asked = [], [*held_out, *generated]
    for k, each in enumerate(asked, start=1):
        found.append(_neighbour(each.name, each.read(), there))
        on_stage("neighbours of label maps", k, len(asked))
        if k == len(held_out):
            usual_distance(found)  # refuses a held-out set that is all of training
    return judged(found[len(held_out) :], found[: len(held_out)], len(training))


def _neighbour(name: str, labels: LabelMap, others: Sequence[tuple[str, Likeness]]) -> Neighbour:
    own, turned = Likeness.of(labels), Likeness.of(mirrored(labels))
    volumes = [{id: each.ml for id, each in other.found.items()} for _, other in others]
    bounds = [min(own.least_distance(each), turned.least_distance(each)) for each in volumes]
    order = np.argsort(bounds, kind="stable").tolist()
    best = (np.inf, order[0], False)
    for k in order:
        if bounds[k] > best[0]:  # cut structures may be nearer than their volumes say, by little
            break
        best = min(best, *((each.distance(others[k][1]), k, each is turned) for each in (own, turned)))
    distance, nearest, is_mirrored = best
    return Neighbour(
        name=name,
        nearest=others[nearest][0],
        distance=float(distance),
        nearest_by_features=others[order[0]][0],
        features=bounds[order[0]],
        mirrored=is_mirrored,
    )


def mirrored(labels: LabelMap) -> LabelMap:
    """The map left to right, where what was on the left is named for the right and the other way round."""
    table = _opposites(load_vocabulary())
    return LabelMap(np.ascontiguousarray(table[labels.array][::-1]), labels.grid)


def _opposites(vocabulary: Vocabulary) -> np.ndarray:
    """The id of the other side of each id, which most have not: (256,) uint8."""
    table = np.arange(256, dtype=np.uint8)
    for structure in vocabulary.structures:
        side, _, rest = structure.name.partition(" ")
        other = {"left": "right", "right": "left"}.get(side)
        if other is not None and f"{other} {rest}" in vocabulary.names:
            table[structure.id] = vocabulary.id(f"{other} {rest}")
    return table
