"""A case of a manifest as volume, labels in our vocabulary, and region span."""

import re

import numpy as np

from maisi.anatomy.body import complete_labels, tissue_labels
from maisi.anatomy.regions import BodyRegion, RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.space.files import read_labels, read_volume
from maisi.space.volume import LabelMap, Volume, check_same_grid

REGION_WORDS = {
    BodyRegion.HEAD: r"head|neck|brain|skull",
    BodyRegion.CHEST: r"chest|thorax|lung|mediastinum|heart|shoulder",
    BodyRegion.ABDOMEN: r"abdomen|liver|kidney",
    BodyRegion.LOWER: r"pelvis|thigh|leg|lower|limb|hip",
}


def read_case(case: Case) -> tuple[Volume, LabelMap]:
    """The volume, and labels of every voxel: the case's own where it has some, coarse tissues elsewhere."""
    if case.image is None:
        raise InvalidRequestError(f"case {case.id!r} has no image")
    volume = read_volume(case.image)
    own = own_labels(case)
    if own is None:
        return volume, tissue_labels(volume)
    check_same_grid(own, volume)
    return volume, complete_labels(own, volume)


def own_labels(case: Case) -> LabelMap | None:
    """The case's labels in our vocabulary; ids without a name, and names it does not know, are left out."""
    if case.labels_maisi is not None:
        return read_labels(case.labels_maisi)
    if case.labels is None:
        return None
    labels, vocabulary = read_labels(case.labels), load_vocabulary()
    names = {int(id): case.label_names.get(str(id), "") for id in np.unique(labels.array)}
    foreign = {name for name in names.values() if not vocabulary.knows(name)}
    ours = vocabulary.translate(labels.array, names, drop=foreign)
    return LabelMap(ours, labels.grid) if ours.any() else None


def case_span(case: Case, labels: LabelMap) -> RegionSpan:
    """The regions that the manifest's words name; without any, those that the labels show."""
    named = [region for region, words in REGION_WORDS.items() if re.search(words, case.region.lower())]
    if named:
        return RegionSpan(named[0], named[-1])
    return region_span(labels)
