"""A case of a manifest as volume, labels in our vocabulary, and region span."""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from maisi.anatomy.body import complete_labels, tissue_labels
from maisi.anatomy.numberings import Numbering, in_our_ids
from maisi.anatomy.regions import BodyRegion, RegionSpan, region_span
from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.door import open_labels
from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.space.files import log_findings, read_image
from maisi.space.label_files import read_labels
from maisi.space.reading import Finding, ReadOptions
from maisi.space.volume import LabelMap, Volume, check_same_grid

logger = logging.getLogger(__name__)

REGION_WORDS = {
    BodyRegion.HEAD: r"head|neck|brain|skull",
    BodyRegion.CHEST: r"chest|thorax|lung|mediastinum|heart|shoulder",
    BodyRegion.ABDOMEN: r"abdomen|liver|kidney",
    BodyRegion.LOWER: r"pelvis|thigh|leg|lower|limb|hip",
}


@contextmanager
def _naming(case: Case) -> Iterator[None]:
    """What is refused within says of which case it is."""
    said = f"case {case.id}: "
    try:
        yield
    except InvalidRequestError as error:
        if str(error).startswith(said):
            raise
        raise type(error)(f"{said}{error}") from error


def read_case(case: Case, drop: Collection[str] = (), vocabulary: Vocabulary | None = None) -> tuple[Volume, LabelMap]:
    """The volume, and labels of every voxel: the case's own where it has some, coarse tissues elsewhere.

    `drop` and `vocabulary` are for `own_labels`. What is refused, is refused with the id of the case.
    """
    volume = case_volume(case)
    with _naming(case):
        own = own_labels(case, drop, vocabulary)
        if own is None and volume.modality != "ct":
            raise InvalidRequestError("it is an MR without labels, and only a CT shows tissues by itself")
        if own is None:
            return volume, tissue_labels(volume)
        check_same_grid(own, volume)
        return volume, complete_labels(own, volume, vocabulary=vocabulary) if volume.modality == "ct" else own


def case_volume(case: Case) -> Volume:
    """The volume of a case; one that `maisi prepare` has judged and windowed is not judged again.

    What is refused, is refused with the id of the case.
    """
    is_prepared = "image" in case.sums
    with _naming(case):
        if case.image is None:
            raise InvalidRequestError("it has no image")
        volume, findings = read_image(case.image, ReadOptions(modality=case.modality, trust_hu=is_prepared))
    log_findings(case.image, () if is_prepared else findings)
    return volume


def own_labels(case: Case, drop: Collection[str] = (), vocabulary: Vocabulary | None = None) -> LabelMap | None:
    """The case's labels in our vocabulary; None where it has none of a structure that the vocabulary knows.

    `vocabulary` is that of a recipe with classes of its own; without, the one that ships with the package.

    Left out is what `label_names` calls background, what `drop` names (names, or numbers that have none), and, with a
    warning, what `numberings.yaml` lists as without a place. Raises InvalidLabelsError on any other id without a name
    and on any other name that nobody knows.
    """
    if case.labels_maisi is not None:
        labels, report = open_labels(case.labels_maisi, vocabulary=vocabulary)
        _warn(case, report.findings)
        return labels
    if case.labels is None:
        return None
    labels, findings = in_our_ids(
        read_labels(case.labels), _numbering(case, drop), vocabulary or load_vocabulary(), case.labels
    )
    _warn(case, findings)
    return labels if labels.array.any() else None


def _numbering(case: Case, drop: Collection[str]) -> Numbering:
    wrong = [key for key in case.label_names if not key.isdecimal()]
    if wrong:
        raise InvalidConfigError(f"label_names has the key {wrong[0]!r}; accepted: whole numbers")
    said = {**case.label_names, **{id: "background" for id in drop if id.isdecimal()}}
    names = {int(id): "background" if name in drop else name for id, name in said.items() if int(id) > 0}
    return Numbering(name=f"of case {case.id}", title=f"case {case.id}", names=names)


def _warn(case: Case, findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        if finding.is_warning:
            logger.warning("case %s: %s; %s", case.id, finding.found, finding.decided)


def case_span(case: Case, labels: LabelMap) -> RegionSpan:
    """The span that the manifest says, in its words or as such; without one, what the labels show."""
    if case.span is not None:
        return RegionSpan.named(*case.span)
    return words_span(case.region) or region_span(labels)


def words_span(words: str) -> RegionSpan | None:
    """The body regions that words such as "chest and abdomen" name; None where they name none."""
    named = [region for region, pattern in REGION_WORDS.items() if re.search(pattern, words.lower())]
    return RegionSpan(named[0], named[-1]) if named else None
