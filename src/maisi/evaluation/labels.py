"""Whether a segmenter finds in synthetic volumes what their labels say as well as in real ones, structure by structure.

This is Table S5 of Guo et al. (arXiv 2409.11169), with intervals and a test of equivalence.
"""

import hashlib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, runtime_checkable

import numpy as np
from pydantic import Field

from maisi.anatomy.body import complete_labels
from maisi.anatomy.segmented import admissible
from maisi.anatomy.vocabulary import Vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.labelled import looked_for
from maisi.data.manifest import Case
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.evaluation.equivalence import Equivalence, paired_equivalence, unpaired_equivalence
from maisi.evaluation.segmentation import Agreement, Interval, agreement, interval, known_agreement, of_patients
from maisi.pipelines.quality.segmenter import Segmenter
from maisi.pipelines.segment import NetworkSegmenter
from maisi.shapes import Frozen, Spacing3, few, in_words
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume, check_same_grid

MISSED = 0.9
"""Share of the cases of a set with Dice 0 from which on a structure is not found there."""

SetName = Literal["real", "synthetic"]


@runtime_checkable
class Judge(typing.Protocol):
    """Says how well a segmenter finds in a volume each structure that its labels have."""

    def __call__(self, volume: Volume, labels: LabelMap, case: Case) -> dict[str, Agreement]: ...

    def sought(self, labels: LabelMap, case: Case) -> list[str]:
        """The names of the structures that it looks for in a case with these labels."""


class CaseAgreement(Frozen):
    """What a segmenter made of one case."""

    id: str
    set: SetName
    patient: str
    spacing_mm: Spacing3
    labels_sum: str = Field(default="", description="Of the label map: equal ones are one map on one grid.")
    structures: dict[str, Agreement]


class FailedCase(Frozen):
    """A case that could not be read or segmented, and why."""

    id: str
    set: SetName
    words: str


class Figures(Frozen):
    """Means of a structure over the patients of a set, with their intervals; `missed` are cases where it was not found.

    A missed structure has Dice and surface Dice 0, and no distance.
    """

    dice: Interval
    surface_dice: Interval
    hd95_mm: Interval | None
    missed: int


class StructureReport(Frozen):
    """One structure in both sets, and whether its Dice is the same within the margin.

    The verdict is `not found`, without a test, where its Dice is 0 in at least nine tenths of the cases of each set.
    """

    name: str
    real: Figures
    synthetic: Figures
    test: Equivalence


class LabelReport(Frozen):
    """A segmenter on real and on synthetic volumes."""

    version: int = 2
    segmenter: str
    tolerance_mm: float
    margin: float
    num_real: int
    num_synthetic: int
    structures: tuple[StructureReport, ...]
    cases: tuple[CaseAgreement, ...]
    failures: tuple[FailedCase, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CommandJudge:
    """Judges by a segmenter that writes ids of the vocabulary; lesions count to the organ that they grow in."""

    segmenter: Segmenter
    vocabulary: Vocabulary
    tolerance_mm: float

    def __call__(self, volume: Volume, labels: LabelMap, case: Case) -> dict[str, Agreement]:
        structures = {name: self._ids(name) for name in self.sought(labels, case)}
        return agreement(labels, self.segmenter(volume), structures, self.tolerance_mm)

    def sought(self, labels: LabelMap, case: Case) -> list[str]:
        present = set(self.vocabulary.check_ids(labels.array)) & looked_for(case, labels, self.vocabulary)
        return [self.vocabulary.name(id) for id in sorted(present)]

    def _ids(self, name: str) -> tuple[int, ...]:
        lesions = [each.id for each in self.vocabulary.structures if each.host == name]
        return (self.vocabulary.id(name), *lesions)


@dataclass(frozen=True)
class NetworkJudge:
    """Judges by the segmenter of a bundle, for those of its classes that the labels of a case name."""

    segmenter: NetworkSegmenter
    vocabulary: Vocabulary
    tolerance_mm: float

    def __call__(self, volume: Volume, labels: LabelMap, case: Case) -> dict[str, Agreement]:
        classes, sought = self.segmenter.config.classes, looked_for(case, labels, self.vocabulary)
        table = admissible(classes, sought, self.vocabulary)
        whole, channels = complete_labels(labels, volume, vocabulary=self.vocabulary), self.segmenter.classes(volume)
        found = known_agreement(whole, channels, table, [each.name for each in classes], self.tolerance_mm)
        return {name: found[name] for name in self.sought(labels, case) if name in found}

    def sought(self, labels: LabelMap, case: Case) -> list[str]:
        ids = looked_for(case, labels, self.vocabulary)
        return [each.name for each in self.segmenter.config.classes if set(each.ids) & ids]


def check_shared(cases: Sequence[tuple[SetName, Case]], judge: Judge, vocabulary: Vocabulary) -> None:
    """Nothing, or `InvalidLabelsError` where the labels of the two sets name no structure in common.

    Label maps are read by turns, and no more of them than it takes to find one. What cannot be read is passed over.
    """
    named: dict[SetName, dict[str, None]] = {"real": {}, "synthetic": {}}
    sets = [[each for each in cases if each[0] == name] for name in named]
    for which, case in (each for turn in zip_longest(*sets) for each in turn if each is not None):
        try:
            labels = own_labels(case, vocabulary=vocabulary)
        except InvalidRequestError:
            continue
        named[which] |= {} if labels is None else dict.fromkeys(judge.sought(labels, case))
        if named["real"].keys() & named["synthetic"].keys():
            return
    if all(named.values()):
        raise _nothing_shared(*map(list, named.values()))


def _nothing_shared(real: Sequence[str], synthetic: Sequence[str]) -> InvalidLabelsError:
    return InvalidLabelsError(
        f"no structure is in both sets: real has {few(real) or 'none'}; synthetic has {few(synthetic) or 'none'}"
    )


def judged_case(
    case: Case, which: SetName, judge: Judge, vocabulary: Vocabulary, spacing_mm: Spacing3 | None = None
) -> CaseAgreement:
    """A case read, resampled if asked for, segmented and compared.

    Raises `InvalidLabelsError` where its labels name no structure.
    """
    volume, labels = case_volume(case), own_labels(case, vocabulary=vocabulary)
    if labels is None or not set(vocabulary.check_ids(labels.array)) - set(vocabulary.group("tissues")):
        raise InvalidLabelsError(f"case {case.id}: its labels name no structure besides coarse tissues")
    check_same_grid(labels, volume)
    labels_sum = _sum(labels)
    if spacing_mm is not None:
        grid = with_spacing(volume.grid, spacing_mm)
        volume, labels = resample(volume, grid), resample(labels, grid)
    return CaseAgreement(
        id=case.id,
        set=which,
        patient=case.patient or case.id,
        spacing_mm=volume.grid.spacing,
        labels_sum=labels_sum,
        structures=judge(volume, labels, case),
    )


def _sum(labels: LabelMap) -> str:
    """What tells a label map from all others: its ids, and the size and spacing of its grid."""
    grid = f"{labels.grid.shape} {[round(mm, 3) for mm in labels.grid.spacing]}"
    return hashlib.sha256(grid.encode() + np.ascontiguousarray(labels.array).tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Protocol:
    """How two sets are compared."""

    segmenter: str
    tolerance_mm: float
    margin: float
    paired: bool = True  # where both sets share case ids
    seed: int = 0


def compare_labels(cases: Sequence[CaseAgreement], failures: Sequence[FailedCase], protocol: Protocol) -> LabelReport:
    """The report on cases that were judged. Patients count, not cases: values of one patient are averaged.

    Raises `InvalidLabelsError` where no structure is in both sets.
    """
    real, synthetic = ([case for case in cases if case.set == name] for name in ("real", "synthetic"))
    names = [_names(each) for each in (real, synthetic)]
    shared = [name for name in names[0] if name in names[1]]
    if not shared:
        raise _nothing_shared(*names)
    rng = np.random.default_rng(protocol.seed)
    structures = tuple(_structure(name, real, synthetic, protocol, rng) for name in shared)
    return LabelReport(
        segmenter=protocol.segmenter,
        tolerance_mm=protocol.tolerance_mm,
        margin=protocol.margin,
        num_real=len(real),
        num_synthetic=len(synthetic),
        structures=structures,
        cases=tuple(cases),
        failures=tuple(failures),
        notes=tuple(_notes(real, synthetic, names, structures)),
    )


def _names(cases: Sequence[CaseAgreement]) -> list[str]:
    return list(dict.fromkeys(n for case in cases for n, each in case.structures.items() if each.reference_ml > 0))


def _structure(
    name: str,
    real: Sequence[CaseAgreement],
    synthetic: Sequence[CaseAgreement],
    protocol: Protocol,
    rng: np.random.Generator,
) -> StructureReport:
    first, second = (
        [case for case in cases if name in case.structures and case.structures[name].reference_ml > 0]
        for cases in (real, synthetic)
    )
    test = _test(name, first, second, protocol)
    if _is_missed(name, first) and _is_missed(name, second):
        test = Equivalence(verdict="not found", paired=test.paired, margin=test.margin, numbers=test.numbers)
    return StructureReport(name=name, real=_figures(name, first, rng), synthetic=_figures(name, second, rng), test=test)


def _is_missed(name: str, cases: Sequence[CaseAgreement]) -> bool:
    return sum(_dice(case.structures[name]) == 0 for case in cases) >= MISSED * len(cases)


def _test(
    name: str, real: Sequence[CaseAgreement], synthetic: Sequence[CaseAgreement], protocol: Protocol
) -> Equivalence:
    """Paired where most of the smaller set has its case in the other one."""
    pairs = paired_cases(real, synthetic) if protocol.paired else []
    if pairs and 2 * len(pairs) > min(len(real), len(synthetic)):
        apart = [_dice(b.structures[name]) - _dice(a.structures[name]) for a, b in pairs]
        return paired_equivalence(of_patients([a.patient for a, _ in pairs], apart), protocol.margin)
    values = [
        of_patients([case.patient for case in cases], [_dice(case.structures[name]) for case in cases])
        for cases in (real, synthetic)
    ]
    return unpaired_equivalence(values[0], values[1], protocol.margin)


def paired_cases(
    real: Sequence[CaseAgreement], synthetic: Sequence[CaseAgreement]
) -> list[tuple[CaseAgreement, CaseAgreement]]:
    """Cases that show one label map: of the same id, else of equal label maps; each synthetic one in one pair."""
    ids, maps = {case.id: case for case in real}, {case.labels_sum: case for case in real if case.labels_sum}
    partners = [(ids.get(case.id) or maps.get(case.labels_sum), case) for case in synthetic]
    return [(partner, case) for partner, case in partners if partner is not None]


def _figures(name: str, cases: Sequence[CaseAgreement], rng: np.random.Generator) -> Figures:
    patients, found = [case.patient for case in cases], [case.structures[name] for case in cases]
    far = {k: each.hd95_mm for k, each in enumerate(found) if each.hd95_mm is not None}
    return Figures(
        dice=interval(of_patients(patients, [_dice(each) for each in found]), rng),
        surface_dice=interval(of_patients(patients, [each.surface_dice or 0.0 for each in found]), rng),
        hd95_mm=interval(of_patients([patients[k] for k in far], list(far.values())), rng) if far else None,
        missed=sum(each.found_ml == 0 for each in found),
    )


def _dice(found: Agreement) -> float:
    assert found.dice is not None, "the reference has the structure"
    return found.dice


def _notes(
    real: Sequence[CaseAgreement],
    synthetic: Sequence[CaseAgreement],
    names: Sequence[Sequence[str]],
    structures: Sequence[StructureReport],
) -> list[str]:
    notes = []
    for words, here, there in (("real", *names), ("synthetic", *reversed(names))):
        alone = [name for name in here if name not in there]
        if alone:
            notes.append(f"in {words} labels alone, so not compared: {', '.join(alone)}")
    spacings = [{tuple(round(mm, 2) for mm in case.spacing_mm) for case in cases} for cases in (real, synthetic)]
    if spacings[0] != spacings[1]:
        shown = [", ".join(in_words(each) for each in sorted(s)[:3]) for s in spacings]
        notes.append(
            f"spacings differ (mm): real {shown[0]}; synthetic {shown[1]}; nothing was resampled, see --spacing"
        )
    missed = [s.name for s in structures if s.test.verdict == "not found"]
    if missed:
        notes.append(f"the segmenter finds these hardly anywhere, or does not know them: {few(missed, 8)}")
    return notes
