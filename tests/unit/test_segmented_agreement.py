"""Which structures a segmenter is judged by, and how cases become a verdict."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maisi.anatomy.segmented import class_map, segmented_classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import Case
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.evaluation.labels import (
    CaseAgreement,
    CommandJudge,
    LabelReport,
    NetworkJudge,
    Protocol,
    SetName,
    check_shared,
    compare_labels,
)
from maisi.evaluation.labels_page import labels_page
from maisi.evaluation.requests import EvaluateLabelsRequest
from maisi.evaluation.segmentation import Agreement
from maisi.runs.tasks.evaluate_labels import check
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
LIVER, SPLEEN, TUMOUR = (VOCABULARY.id(name) for name in ("liver", "spleen", "hepatic tumor"))
GRID = Grid.centered((20, 20, 12), (4.0, 4.0, 4.0))
CASE = Case(id="a")


def scan() -> tuple[Volume, LabelMap]:
    """Soft tissue with a liver that alone is labelled, and a tumour in it."""
    hu = np.full(GRID.shape, -1000.0, np.float32)
    hu[2:-2, 2:-2] = 40.0
    ids = np.zeros(GRID.shape, np.uint8)
    ids[5:13, 5:13, 3:9] = LIVER
    ids[8:10, 8:10, 5:7] = TUMOUR
    return Volume(hu, GRID), LabelMap(ids, GRID)


def test_a_network_is_judged_by_the_classes_that_were_looked_for() -> None:
    volume, labels = scan()
    names: dict[str, tuple[str, ...]] = {
        "body": ("body", "fat", "air"), "liver": ("liver", "hepatic tumor"), "spleen": (), "skeleton": ("bones",)
    }  # fmt: skip
    classes = segmented_classes(names, VOCABULARY)
    found = class_map(labels.array, classes, VOCABULARY)
    found[2:4, 2:4, 2:4] = 3  # spleen, of which the labels know nothing
    segmenter: Any = SimpleNamespace(
        config=SimpleNamespace(classes=classes), classes=lambda volume: LabelMap(found, GRID)
    )
    judged = NetworkJudge(segmenter, VOCABULARY, 2.0)(volume, labels, CASE)
    assert list(judged) == ["liver"]
    assert judged["liver"].dice == 1.0


def test_lesions_count_to_their_organ() -> None:
    volume, labels = scan()

    def segmenter(volume: Volume) -> LabelMap:
        return LabelMap(np.where(labels.array == TUMOUR, LIVER, labels.array).astype(np.uint8), GRID)

    judged = CommandJudge(segmenter, VOCABULARY, 2.0)(volume, labels, CASE)
    assert judged["liver"].dice == 1.0
    assert judged["hepatic tumor"].dice == 0.0


def stored(folder: Path, name: str, structure: int) -> Case:
    """A case whose label map lies in a file; of id 0 there is no file."""
    ids = np.zeros(GRID.shape, np.uint8)
    ids[5:13, 5:13, 3:9] = structure
    path = folder / f"{name}.nii.gz"
    if structure:
        write_labels(LabelMap(ids, GRID), path)
    return Case(id=name, labels_maisi=path)


def never(volume: Volume) -> LabelMap:
    raise AssertionError("no segmenter is asked before labels are compared")


def test_sets_that_share_no_structure_are_refused_by_their_label_maps_alone(tmp_path: Path) -> None:
    judge = CommandJudge(never, VOCABULARY, 2.0)
    livers: list[tuple[SetName, Case]] = [("real", stored(tmp_path, f"r{k}", LIVER)) for k in range(2)]
    spleens: list[tuple[SetName, Case]] = [("synthetic", stored(tmp_path, f"s{k}", SPLEEN)) for k in range(2)]
    lost: list[tuple[SetName, Case]] = [("synthetic", stored(tmp_path, "lost", 0))]
    with pytest.raises(InvalidLabelsError, match="no structure is in both sets: real has liver; synthetic has spleen"):
        check_shared([*livers, *lost, *spleens], judge, VOCABULARY)
    check_shared([*livers, *spleens, ("synthetic", stored(tmp_path, "s3", LIVER))], judge, VOCABULARY)
    check_shared([*livers, *lost], judge, VOCABULARY)  # why nothing is left is told case by case


def test_no_more_label_maps_are_read_than_it_takes_to_find_a_shared_structure(tmp_path: Path) -> None:
    names: tuple[SetName, SetName] = ("real", "synthetic")
    cases = [(which, stored(tmp_path, f"{which}{k}", LIVER)) for which in names for k in range(3)]
    read: list[str] = []

    class Noted:
        def __call__(self, volume: Volume, labels: LabelMap, case: Case) -> dict[str, Agreement]:
            return {}

        def sought(self, labels: LabelMap, case: Case) -> list[str]:
            read.append(case.id)
            return ["liver"]

    check_shared(cases, Noted(), VOCABULARY)
    assert read == ["real0", "synthetic0"]


def test_a_segmenter_that_is_not_installed_is_refused_when_the_request_is_checked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for part in ("ct", "labels"):
            (tmp_path / f"{name}_{part}.nii.gz").touch()
    given = {"real": tmp_path, "synthetic": tmp_path}
    with pytest.raises(InvalidRequestError, match=r"no command no-such-tool; accepted: .* on the path"):
        check(EvaluateLabelsRequest(**given, segmenter="no-such-tool -i {image} -o {labels}"))
    assert check(EvaluateLabelsRequest(**given, segmenter=f"'{sys.executable}' {{image}} {{labels}}")).subject.cases


def agreed(id: str, which: Any, dice: float, patient: str = "", found_ml: float = 1.0) -> CaseAgreement:
    found = Agreement(reference_ml=1.0, found_ml=found_ml, dice=dice, surface_dice=dice or None, hd95_mm=None)
    return CaseAgreement(
        id=id, set=which, patient=patient or id, spacing_mm=(1.0, 1.0, 1.0), structures={"liver": found}
    )


def test_pairs_are_compared_by_pairs_and_patients_count_once() -> None:
    levels = (0.3, 0.6, 0.9, 0.95)
    cases = [agreed(f"c{k}", which, level) for k, level in enumerate(levels) for which in ("real", "synthetic")]
    paired, unpaired = (compare_labels(cases, (), Protocol("x", 2.0, 0.05, each)) for each in (True, False))
    assert paired.structures[0].test.verdict == "equivalent"
    assert unpaired.structures[0].test.verdict == "too few to say"
    same = [agreed(f"c{k}", which, 0.9, patient="p") for k in range(9) for which in ("real", "synthetic")]
    once = compare_labels(same, (), Protocol("x", 2.0, 0.05))
    assert once.structures[0].test.verdict == "too few to say"
    assert once.structures[0].real.dice.cases == 1
    assert "Too few cases for any interval" in labels_page(once)
    assert "equivalent" in labels_page(paired)


def compared(real: Sequence[float], synthetic: Sequence[float]) -> LabelReport:
    """The report on cases of these Dice, paired where there are as many; what has none was missed."""
    sets = {"real": real, "synthetic": synthetic}
    cases = [agreed(f"c{k}", which, each, found_ml=each) for which, of in sets.items() for k, each in enumerate(of)]
    return compare_labels(cases, (), Protocol("x", 2.0, 0.05))


def test_what_is_missed_is_counted_and_what_is_never_found_is_told() -> None:
    found = compared([0.0] * 3, [0.0] * 3)
    assert found.structures[0].real.missed == 3
    assert "the segmenter finds these hardly anywhere, or does not know them: liver" in found.notes


@pytest.mark.parametrize("many", [2, 3, 20])
def test_what_is_found_in_neither_set_is_not_equivalent_but_not_found(many: int) -> None:
    for real, synthetic in (([0.0] * many, [0.0] * many), ([0.0] * many, [0.0] * 30)):
        found = compared(real, synthetic)
        test = found.structures[0].test
        assert (test.verdict, test.difference, test.low, test.p) == ("not found", None, None, None)
        assert "not found" in labels_page(found)


def test_a_case_in_ten_in_which_it_is_found_changes_nothing_and_one_more_does() -> None:
    once, more = [0.0] * 9 + [0.1], [0.0] * 8 + [0.1] * 2
    assert compared(once, once).structures[0].test.verdict == "not found"
    for real, synthetic in ((more, once), (once, more), (more, more)):
        found = compared(real, synthetic)
        assert found.structures[0].test.verdict != "not found"
        assert not found.notes


def test_the_same_dice_everywhere_is_equivalent_and_what_one_set_misses_is_not() -> None:
    assert compared([1.0] * 3, [1.0] * 3).structures[0].test.verdict == "equivalent"
    assert compared([0.9] * 3, [0.0] * 3).structures[0].test.verdict == "not equivalent"
    assert compared([0.0] * 3, [0.9] * 3).structures[0].test.verdict == "not equivalent"
