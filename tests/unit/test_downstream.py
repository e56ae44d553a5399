"""Downstream experiments: who trains and who tests, leaks, the built-in backend, frameworks outside, the table."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_abdomen import LIMITS, write_abdomen
from made_bundle import random_bundle

from made_limbs import SARCOMA, save_limbs
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import save_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.downstream.backends import auto3dseg, builtin
from maisi.downstream.backends.auto3dseg import Auto3DSeg, write_input
from maisi.downstream.backends.backend import Exercise, backend_of
from maisi.downstream.cell import CellResult, CellWork, ScoredCase, carry_out_cell
from maisi.downstream.experiment import DownstreamRequest, Experiment, Regime, TrainingSettings, read_experiment
from maisi.downstream.given import Given, folder_cases, origins, store_given
from maisi.downstream.levels import level_of, levelled
from maisi.downstream.page import downstream_page
from maisi.downstream.plan import Cell, Split, cases_of, cells_of, divide, num_synthetic, patient_of, training_cases
from maisi.downstream.report import report_of, told_rows
from maisi.downstream.statistics import paired_difference
from maisi.downstream.store import StoredCase, check_no_leak, known_classes, members_of, store_real
from maisi.downstream.synthetic import make_variant, variants_of, varied, without_blur
from maisi.errors import InvalidConfigError, InvalidLabelsError, InvalidRequestError
from maisi.evaluation.segmentation import Agreement
from maisi.runs.tasks.downstream import Planned, check
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

QUICK: dict[str, Any] = {
    "steps": 120,
    "patch": [16, 16, 16],
    "channels": [16, 32],
    "learning_rate": 0.01,
    "coordinates": True,
}


def experiment(manifest: Path, **more: Any) -> Experiment:
    given = {
        "name": "limbs",
        "manifest": manifest,
        "groups": ["limbs"],
        "structures": ["soft-tissue sarcoma"],
        "spacing_mm": 8,
        "split": {"test": "manifest", "folds": 2},
        "training": QUICK,
    }
    return Experiment.model_validate(given | more)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_limbs(tmp_path_factory.mktemp("limbs"))


def people(count: int, **more: Any) -> tuple[Case, ...]:
    return tuple(
        Case(id=f"c{k}", patient=f"p{k // 2}", image=Path("x"), labels=Path("y"), **more) for k in range(count)
    )


# Who trains and who tests ---------------------------------------------------------------------------------------------


def test_nobody_is_in_two_parts_of_a_split_and_the_same_seed_draws_the_same_one(manifest: Path) -> None:
    cases = people(60)
    settings = experiment(manifest, split={"test": "share", "share": 0.2, "folds": 5})
    split = divide(cases, settings)
    parts = [set(each) for each in (split.test, *split.folds)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30
    assert len(split.test) == 6
    assert divide(cases, settings) == split
    other = settings.model_copy(update={"split": settings.split.model_copy(update={"seed": 1})})
    assert divide(cases, other) != split


def test_the_splits_of_a_manifest_test_and_a_patient_on_both_sides_is_refused(manifest: Path) -> None:
    settings = experiment(manifest)
    split = divide(cases_of(settings), settings)
    assert split.test == ("p5", "p6")
    both = (*people(10), Case(id="again", patient="p0", split="validation"))
    with pytest.raises(InvalidRequestError, match="'p0' has scans for training and for testing"):
        divide(both, settings)


def test_too_few_patients_for_the_folds_are_refused(manifest: Path) -> None:
    settings = experiment(manifest, split={"test": "manifest", "folds": 6})
    with pytest.raises(InvalidRequestError, match="5 for 6 folds"):
        divide(cases_of(settings), settings)
    few = experiment(manifest, regimes=[{"num_real": [4]}])
    with pytest.raises(InvalidRequestError, match="num_real 4 is more than the 2"):
        cells_of(few, divide(cases_of(few), few), cases_of(few))


def test_every_fold_ratio_and_seed_is_one_training_and_fewer_cases_are_part_of_more(manifest: Path) -> None:
    settings = experiment(
        manifest,
        split={"test": "share", "folds": 3},
        regimes=[{"seeds": [0, 1]}, {"num_real": [2, 4], "ratios": [0, 1], "seeds": [0]}],
    )
    cases = people(40)
    split = divide(cases, settings)
    cells = cells_of(settings, split, cases)
    assert len(cells) == len({each.name for each in cells}) == 3 * 4 * 2 + 3 * 2 * 2
    for fold in range(3):
        few, more, everything = (
            training_cases(Cell(fold=fold, num_real=n, ratio=0, seed=0), settings, split, cases) for n in (2, 4, "all")
        )
        assert len(few) == 2
        assert few == more[:2] == everything[:2]
        assert more == everything[:4]
        assert not {patient_of(case) for case in everything} & split.held_out(fold)


def test_a_ratio_that_gives_no_synthetic_case_is_refused(manifest: Path) -> None:
    settings = experiment(
        manifest, split={"test": "share", "folds": 3}, regimes=[{"num_real": [2], "ratios": [0, 0.2]}]
    )
    cases = people(40)
    with pytest.raises(InvalidRequestError, match=r"ratio 0\.2 of 2 real cases is no synthetic case; .* at least 0\.5"):
        cells_of(settings, divide(cases, settings), cases)


def test_magnetic_resonance_takes_no_part(tmp_path: Path) -> None:
    listed = {"id": "a", "image": "a.nii", "labels_maisi": "l.nii"}
    content = {"cases": [listed, listed | {"id": "b", "modality": "mr"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    found = cases_of(experiment(tmp_path / "manifest.json", groups=()))
    assert [case.id for case in found] == ["a"]


def test_synthetic_cases_are_made_of_training_cases_alone_each_as_often_as_the_others(manifest: Path) -> None:
    settings = experiment(manifest, split={"test": "share", "folds": 3})
    cases = people(40)
    split = divide(cases, settings)
    for cell in cells_of(settings, split, cases):
        real = training_cases(cell, settings, split, cases)
        made = variants_of(real, num_synthetic(cell, len(real)))
        assert len(made) == round(cell.ratio * len(real)) == len({each.id for each in made})
        assert not {patient_of(each.case) for each in made} & split.held_out(cell.fold)


# Leaks ----------------------------------------------------------------------------------------------------------------


def stored_case(id: str, patient: str, origin: str = "", known: tuple[str, ...] = ("a",)) -> StoredCase:
    return StoredCase(
        id=id, patient=patient, synthetic=bool(origin), known=known, from_patients=(origin,) if origin else ()
    )


def test_a_case_made_of_a_patient_who_was_held_out_is_refused_before_any_training(tmp_path: Path) -> None:
    clean, leaking = stored_case("real", "p1"), stored_case("made", "", origin="p9")
    check_no_leak([clean], frozenset({"p9"}))
    with pytest.raises(InvalidRequestError, match="synthetic case 'made' is made of patient 'p9', who is held out"):
        check_no_leak([clean, leaking], frozenset({"p9"}))
    work = CellWork(
        cell=Cell(fold=0, num_real="all", ratio=1, seed=0),
        training=(clean, leaking),
        validation=(),
        test=(),
        held_out=frozenset({"p9"}),
        classes=("a",),
        settings=TrainingSettings(),
        spacing_mm=4,
        tolerance_mm=2,
        folder=tmp_path,
        out=tmp_path / "cells",
    )
    with pytest.raises(InvalidRequestError, match="held out"):
        carry_out_cell(work)


def given(id: str, patient: str = "") -> Case:
    return Case(id=id, patient=patient, image=Path("x"), labels_maisi=Path("y"))


@pytest.mark.parametrize(
    ("id", "patient"),
    [("STS_7", ""), ("sts_7b", ""), ("drawn/sts_7/0", ""), ("a", "sts_7"), ("a", "Sts_7B"), ("a", "sts_7b_labels")],
)
def test_a_synthetic_case_is_told_by_its_names_however_they_are_written(id: str, patient: str) -> None:
    real = [Case(id="STS_7b", patient="sts_7"), Case(id="STS_7c", patient="sts_8")]
    assert [case.patient for case, _ in origins([given(id, patient)], real)[0]] == ["sts_7"]


def test_a_name_that_goes_on_is_another_one() -> None:
    real = [Case(id="p1/scan", patient="p1"), Case(id="p2/scan")]
    assert origins([given("p10"), given("scan"), given("p2/scan2")], real) == [[], [], []]


def test_a_synthetic_case_is_told_by_its_files_and_by_sums_of_manifests(tmp_path: Path) -> None:
    for name, text in {"a": "same", "b": "same", "c": "else", "d": "longer", "e": "more"}.items():
        (tmp_path / name).write_text(text)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    real = [
        Case(id="r0", patient="p0", image=a, labels=d),
        Case(id="r1", patient="p1", image=tmp_path / "lost", labels=c),
        Case(id="r2", image=e, sums={"image": "told"}),
    ]
    made = [
        Case(id="x", image=b, labels_maisi=e),
        Case(id="y", image=e, labels_maisi=c),
        Case(id="z", image=c, sums={"image": "told"}),
    ]
    found = [[(case.id, how) for case, how in each] for each in origins(made, real)]
    assert found == [[("r0", "has the image of")], [("r1", "has the label map of")], [("r2", "has the image of")]]


def test_a_folder_of_synthetic_cases_that_holds_a_patient_who_tests_is_refused(manifest: Path, tmp_path: Path) -> None:
    cases, other = read_manifest(manifest), save_limbs(tmp_path, training=2, validation=0, first=10)
    with pytest.raises(InvalidRequestError, match="'limb6' is named after case 'limb6' of patient 'p6', who is held"):
        folder_cases(manifest, cases, frozenset({"p6"}))
    assert [each.patients for each in folder_cases(manifest, cases, frozenset())] == [(f"p{k}",) for k in range(7)]
    assert [each.patients for each in folder_cases(other, cases, frozenset({"p6"}))] == [(), ()]
    (tmp_path / "limb10_ct.nii.gz").write_bytes((manifest.parent / "limb6_ct.nii.gz").read_bytes())
    with pytest.raises(InvalidRequestError, match="'limb10' has the image of case 'limb6' of patient 'p6'"):
        folder_cases(other, cases, frozenset({"p6"}))


def test_a_given_case_of_a_patient_is_trained_on_in_the_folds_of_that_patient_alone(
    manifest: Path, tmp_path: Path
) -> None:
    folder = {"synthetic": {"source": "folder", "folder": manifest}, "regimes": [{"ratios": [0, 1], "seeds": [0]}]}
    settings = experiment(manifest, **folder)
    cases = cases_of(settings)
    split = divide(cases, settings)
    limbs = folder_cases(manifest, cases, frozenset())
    cells = cells_of(settings, split, cases)
    planned = Planned(cases, limbs[:5], split, cells, {})
    for cell in (each for each in cells if each.ratio):
        names = planned.synthetic(cell, settings)
        assert names == tuple(f"limb{p[1:]}" for p in sorted(split.training(cell.fold)))
        stored = store_given(limbs[int(names[0][4:])], members_of(settings.structures), 8.0, tmp_path)
        check_no_leak([stored], split.held_out(cell.fold))
        with pytest.raises(InvalidRequestError, match="held out"):
            check_no_leak([stored], frozenset(split.training(cell.fold)))
    few = Planned(cases, limbs[:1], split, cells, {})
    with pytest.raises(InvalidRequestError, match=r"takes . synthetic cases; .* has . for this fold"):
        [few.synthetic(cell, settings) for cell in cells]


# Cases ----------------------------------------------------------------------------------------------------------------


def test_a_stored_case_has_its_classes_on_the_spacing_asked_for_and_is_not_made_twice(
    manifest: Path, tmp_path: Path
) -> None:
    members = members_of({"sarcoma": ("soft-tissue sarcoma",)})
    assert members == {"sarcoma": (SARCOMA,)}
    case = read_manifest(manifest)[0]
    made = store_real(case, members, 10.0, tmp_path)
    assert made.known == ("sarcoma",)
    volume, classes = made.volume(tmp_path), made.classes(tmp_path)
    assert volume.grid.spacing == pytest.approx((10, 10, 10))
    assert set(np.unique(classes.array)) == {0, 1}
    assert volume.array[classes.array == 1].mean() == pytest.approx(150, abs=25)
    before = (tmp_path / "limb0_ct.nii.gz").stat().st_mtime_ns
    assert store_real(case, members, 10.0, tmp_path) == made
    assert (tmp_path / "limb0_ct.nii.gz").stat().st_mtime_ns == before


def test_a_class_is_known_where_all_of_it_was_looked_for() -> None:
    members = members_of({"parotids": ("left parotid", "right parotid"), "brainstem": ("brainstem",)})
    own = LabelMap(np.zeros((2, 2, 2), np.uint8), Grid.centered((2, 2, 2), (1, 1, 1)))
    one = Case(id="x", labels_present=("LeftParotid", "Brainstem"))
    both = Case(id="y", labels_present=("LeftParotid", "RightParotid"))
    assert known_classes(one, own, members) == ("brainstem",)
    assert known_classes(both, own, members) == ("parotids",)


def test_a_case_of_which_no_class_is_known_is_refused_with_what_its_labels_name(manifest: Path, tmp_path: Path) -> None:
    case, members = read_manifest(manifest)[0], members_of({"liver": ("liver",), "spleen": ("spleen",)})
    words = "none of the classes liver, spleen is known in it; its labels name soft-tissue sarcoma"
    for store, item in ((store_real, case), (store_given, Given(case=case, patients=()))):
        with pytest.raises(InvalidLabelsError, match=words):
            store(item, members, 8.0, tmp_path)
    settings = experiment(manifest, structures=["liver"], synthetic={"bundle": "not loaded"})
    with pytest.raises(InvalidLabelsError, match="classes liver is known in it"):
        make_variant(variants_of([case], 1)[0], settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_structure_in_two_classes_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="'liver' is in two classes"):
        members_of({"a": ("liver",), "b": ("liver", "spleen")})
    with pytest.raises(InvalidRequestError, match="livre"):
        members_of({"a": ("livre",)})


def test_a_varied_map_keeps_its_tumour_elsewhere_and_its_borders_closed(manifest: Path) -> None:
    settings = experiment(manifest)
    case = read_manifest(manifest)[0]
    ids = np.full((24, 24, 24), 200, np.uint8)
    ids[8:14, 8:14, 8:14] = SARCOMA
    labels = LabelMap(ids, Grid.centered((24, 24, 24), (8, 8, 8)))
    first, second = (varied(labels, each, settings.synthetic) for each in variants_of([case], 2))
    again = varied(labels, variants_of([case], 1)[0], settings.synthetic)
    assert set(np.unique(first.array)) == {200, SARCOMA}  # no air comes in at the ends
    assert (first.array == again.array).all()
    assert (first.array != second.array).any()
    assert (first.array != labels.array).any()


def test_a_tumour_more_is_put_where_the_labels_of_the_case_name_its_host(tmp_path: Path) -> None:
    abdomen = write_abdomen(tmp_path)
    case = Case(
        id="a", image=abdomen / "diseased_ct.nii", labels_maisi=abdomen / "diseased.nii", patient="p", region="abdomen"
    )
    bundle = save_bundle(random_bundle(LIMITS), tmp_path / "bundle")
    settings = experiment(
        tmp_path / "none.json", groups=(), structures=["hepatic tumor"], spacing_mm=4,
        synthetic={"source": "inpaint", "tumour": "hepatic tumor", "bundle": str(bundle), "steps": 1},
    )  # fmt: skip
    made = make_variant(variants_of([case], 1)[0], settings, tmp_path / "cases")
    real = store_real(case, members=members_of(settings.structures), spacing_mm=4, folder=tmp_path / "cases")
    before, after = (each.classes(tmp_path / "cases").array > 0 for each in (real, made))
    assert made.from_patients == ("p",)
    assert after.sum() > before.sum() > 0
    assert after[before].all()


def test_levels_are_those_of_the_reference_and_outlines_stay() -> None:
    rng, grid = np.random.default_rng(0), Grid.centered((20, 20, 20), (4, 4, 4))
    ids = np.zeros(grid.shape, np.uint8)
    ids[2:18, 2:18, 2:18] = 200
    ids[6:12, 6:12, 6:12] = SARCOMA
    labels = LabelMap(ids, grid)
    drawn, wanted = (
        Volume(np.select([ids == SARCOMA, ids == 200], levels, -1000.0) + rng.normal(0, sd, grid.shape), grid)
        for levels, sd in (((-10.0, 20.0), 30), ((40.0, 50.0), 10))
    )
    found = levelled(drawn, labels, wanted, labels)
    for id in (SARCOMA, 200):
        own, reference = (level_of(each, labels, id) for each in (found, wanted))
        assert own is not None
        assert reference is not None
        assert own.median == pytest.approx(reference.median, abs=2)
        assert own.spread < 1.5 * reference.spread
    assert (found.array[ids == 0] == drawn.array[ids == 0]).all()


def test_no_shell_of_muscle_stays_where_a_tumour_in_fat_was() -> None:
    vocabulary = load_vocabulary()
    fat, body = vocabulary.id("fat"), vocabulary.id("body")
    ids = np.full((30, 30, 30), fat, np.uint8)
    ids[:, :8] = body  # muscle, which the tumour touches
    ids[10:18, 7:15, 10:18] = body
    ids[11:17, 8:14, 11:17] = SARCOMA
    found = without_blur(LabelMap(ids, Grid.centered(ids.shape, (4, 4, 4))), {SARCOMA}).array
    assert (found[10:18, 8:15, 10:18][ids[10:18, 8:15, 10:18] == body] == fat).all()
    assert (found[:, :7] == body).all()
    assert ((found == SARCOMA) == (ids == SARCOMA)).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"bundle": "nope"}, "no bundle 'nope'; accepted: .*ct-small"),
        (
            {"bundle": "ct-labels"},
            "'ct-labels' makes no synthetic cases: it has no autoencoder and no unet",
        ),
        ({"source": "inpaint", "tumour": "foo"}, "unknown tumour 'foo'; .*accepted: .*hepatic tumor"),
        ({"source": "inpaint", "tumour": "liver"}, "liver is no tumour"),
        ({"source": "inpaint", "tumour": "hepatic tumor", "bundle": "nope"}, "no bundle 'nope'"),
        ({"source": "inpaint", "tumour": "hepatic tumor", "bundle": "ct-labels"}, "it has no autoencoder and no unet"),
    ],
)
def test_what_makes_no_synthetic_case_is_refused_when_the_experiment_is_checked(
    manifest: Path, more: dict[str, Any], words: str
) -> None:
    settings = experiment(manifest, synthetic=more, regimes=[{"ratios": [0, 1], "seeds": [0]}])
    with pytest.raises(InvalidRequestError, match=words):
        check(DownstreamRequest(experiment=settings))
    without = settings.model_copy(update={"regimes": (Regime(ratios=(0,)),)})
    assert check(DownstreamRequest(experiment=without)).subject.cells


# The built-in backend -------------------------------------------------------------------------------------------------


def test_the_builtin_network_learns_a_bright_ball_and_the_same_seed_learns_the_same(
    manifest: Path, tmp_path: Path
) -> None:
    members = members_of({"sarcoma": ("soft-tissue sarcoma",)})
    cases = [store_real(case, members, 8.0, tmp_path) for case in read_manifest(manifest)]
    settings = TrainingSettings.model_validate(QUICK)
    exercise = Exercise(tuple(cases[:5]), (), tuple(cases[5:]), tmp_path, ("sarcoma",), settings, 0, 8.0)
    state = torch.get_rng_state()
    backends = [backend_of(settings) for _ in range(2)]
    found = [dict(_by_id(each.segment(exercise, tmp_path, lambda a, b: None))) for each in backends]
    assert torch.equal(torch.get_rng_state(), state)
    for case in cases[5:]:
        truth = case.classes(tmp_path).array == 1
        told = found[0][case.id] == 1
        assert 2 * (truth & told).sum() / (truth.sum() + told.sum()) > 0.7
        assert (found[0][case.id] == found[1][case.id]).all()


def _by_id(found: Any) -> Any:
    return ((case.id, labels.array) for case, labels in found)


@pytest.mark.parametrize("balance", [0.0, 0.3])
def test_a_class_that_nobody_looked_for_takes_no_part_in_the_loss(balance: float) -> None:
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    masks = torch.zeros(2, 2, 4, 4, 4)
    builtin.dice_and_entropy(logits, masks, torch.tensor([[True, False], [True, True]]), balance).backward()
    assert logits.grad is not None
    assert not logits.grad[0, 1].any()
    assert logits.grad[0, 0].any()
    assert logits.grad[1, 1].any()


def test_a_small_class_pulls_at_the_network_more_with_a_balance() -> None:
    masks = torch.zeros(1, 1, 16, 16, 16)
    masks[0, 0, 8, 8, 8] = 1
    pulls = []
    for balance in (0.0, 0.3):
        logits = torch.full((1, 1, 16, 16, 16), -4.0, requires_grad=True)
        builtin.dice_and_entropy(logits, masks, torch.tensor([[True]]), balance).backward()
        assert logits.grad is not None
        pulls.append(float(-logits.grad[0, 0, 8, 8, 8]))
    assert pulls[1] > 5 * pulls[0] > 0


def test_places_are_those_of_the_volume_and_the_same_left_and_right_where_patches_are_mirrored() -> None:
    for flips in (False, True):
        settings = TrainingSettings(patch=(8, 8, 8), channels=(4, 8), flips=flips)
        places = builtin.places_in((16, 8, 9), (8, 0, 0), settings)
        assert places[1, 0, 0, 0] == -1
        assert places[1, 0, 7, 0] == 1
        left = builtin.places_in((16, 8, 9), (0, 0, 0), settings)
        assert (places[0] == (left[0, ::-1] if flips else -left[0, ::-1])).all()


def test_the_last_steps_see_real_cases_alone_where_that_is_asked_for() -> None:
    hu, classes, known = np.zeros((1, 1, 1)), np.zeros((1, 1, 1), np.uint8), np.array([True])
    real, made = (builtin.Arrays(hu, classes, known, synthetic) for synthetic in (False, True))
    settings = TrainingSettings(steps=10, real_last=0.4)
    assert [len(builtin.seen_at(step, [real, made], settings)) for step in range(10)] == [2] * 6 + [1] * 4
    assert builtin.seen_at(9, [real, made], TrainingSettings(steps=10)) == [real, made]
    assert builtin.seen_at(9, [made], settings) == [made]  # of synthetic data alone


def test_a_patch_beyond_the_volume_is_air_without_classes() -> None:
    case = builtin.Arrays(np.zeros((8, 8, 4), np.float32), np.ones((8, 8, 4), np.uint8), np.array([True]))
    settings = TrainingSettings(patch=(16, 8, 8))
    hu, classes, places = builtin.patch_of(case, settings, np.random.default_rng(0))
    assert hu.shape == classes.shape == places.shape[1:] == (16, 8, 8)
    assert classes.sum() == 8 * 8 * 4
    assert (hu[classes == 0] < -800).all()


# Frameworks outside ---------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_a_framework_that_is_not_installed_is_refused_with_the_line_that_installs_it(tmp_path: Path) -> None:
    for backend, words in (("nnunet", "pip install nnunetv2"), ("auto3dseg", "pip install 'monai")):
        settings = TrainingSettings.model_validate({"backend": backend, "environment": tmp_path})
        with pytest.raises(InvalidRequestError, match=words):
            backend_of(settings).check()
    absent = TrainingSettings.model_validate({"backend": "nnunet"})
    with pytest.raises(InvalidRequestError, match="nnUNetv2_plan_and_preprocess on the path"):
        backend_of(absent).check()


def stored_limbs(manifest: Path, folder: Path) -> list[StoredCase]:
    members = members_of({"sarcoma": ("soft-tissue sarcoma",)})
    return [store_real(case, members, 8.0, folder) for case in read_manifest(manifest)]


def test_nnunet_gets_its_data_set_and_split_and_what_it_finds_is_read(manifest: Path, tmp_path: Path) -> None:
    cases, bin = stored_limbs(manifest, tmp_path / "cases"), tmp_path / "env" / "bin"
    script(bin / "nnUNetv2_plan_and_preprocess", "#!/bin/sh\ntest -f $nnUNet_raw/Dataset001_maisi/dataset.json\n")
    own = f"test $OMP_NUM_THREADS = {torch.get_num_threads()}"
    split = "test -f $nnUNet_preprocessed/Dataset001_maisi/splits_final.json"
    script(bin / "nnUNetv2_train", f"#!/bin/sh\n{split} && {own}\n")
    predict = "\n".join(
        (
            "#!/bin/sh",
            'mkdir -p "$4"',
            'for f in "$2"/*; do n=$(basename $f _0000.nii.gz); cp LABELS/${n}_labels.nii.gz "$4/$n.nii.gz"; done',
        )
    )
    script(bin / "nnUNetv2_predict", predict.replace("LABELS", str(tmp_path / "cases")))
    settings = TrainingSettings.model_validate({"backend": "nnunet", "environment": tmp_path / "env"})
    backend = backend_of(settings)
    backend.check()
    folder = tmp_path / "cases"
    exercise = Exercise(tuple(cases[:4]), (cases[4],), tuple(cases[5:]), folder, ("sarcoma",), settings, 0, 8.0)
    scratch = tmp_path / "scratch"
    found = dict(_by_id(backend.segment(exercise, scratch, lambda a, b: None)))
    assert set(found) == {"limb5", "limb6"}
    assert (found["limb5"] == cases[5].classes(folder).array).all()
    told = json.loads((scratch / "nnUNet_raw/Dataset001_maisi/dataset.json").read_text())
    assert told["labels"] == {"background": 0, "sarcoma": 1}
    assert told["numTraining"] == 5
    split = json.loads((scratch / "nnUNet_preprocessed/Dataset001_maisi/splits_final.json").read_text())
    assert split == [{"train": ["limb0", "limb1", "limb2", "limb3"], "val": ["limb4"]}]


def test_auto3dseg_gets_a_datalist_and_cases_without_all_classes_are_left_out(manifest: Path, tmp_path: Path) -> None:
    folder, bin, scratch = tmp_path / "cases", tmp_path / "env" / "bin", tmp_path / "a scratch"
    cases = stored_limbs(manifest, folder)
    asked = fake_auto3dseg(bin / "python", folder)
    settings = TrainingSettings.model_validate({"backend": "auto3dseg", "environment": tmp_path / "env"})
    partial = cases[0].model_copy(update={"known": ()})
    classes = ("nobody's", "sarcoma")
    known = [each.model_copy(update={"known": classes}) for each in cases[1:]]
    exercise = Exercise((partial, *known[:3]), (known[3],), tuple(known[4:]), folder, classes, settings, 0, 8.0)
    scratch.mkdir()
    found = dict(_by_id(backend_of(settings).segment(exercise, scratch, lambda a, b: None)))
    assert set(found) == {"limb5", "limb6"}
    listed = json.loads((scratch / "datalist.json").read_text())
    assert [each["image"][:5] for each in listed["training"]] == ["limb1", "limb2", "limb3", "limb4"]
    assert [each["fold"] for each in listed["training"]] == [1, 1, 1, 0]
    assert yaml.safe_load((scratch / "input.yaml").read_text())["output_classes"] == 3
    assert asked.read_text().split()[-2:] == ["-", "run"]
    nothing = Exercise((partial,), (), (), folder, ("sarcoma",), settings, 0, 8.0)
    with pytest.raises(InvalidRequestError, match="labelled completely"):
        write_input(nothing, tmp_path)


def test_auto3dseg_sees_synthetic_cases_in_as_many_steps_as_real_ones_alone(manifest: Path, tmp_path: Path) -> None:
    folder, asked = tmp_path / "cases", fake_auto3dseg(tmp_path / "env" / "bin" / "python", tmp_path / "cases")
    cases = stored_limbs(manifest, folder)
    given = {"backend": "auto3dseg", "environment": tmp_path / "env", "epochs": 30}
    settings = TrainingSettings.model_validate(given)
    made = cases[2].model_copy(update={"synthetic": True})
    for name, training, epochs in (("real", cases[:2], 30), ("both", [*cases[:2], made], 20)):
        exercise = Exercise(tuple(training), (), tuple(cases[5:]), folder, ("sarcoma",), settings, 0, 8.0)
        (tmp_path / name).mkdir()
        assert len(list(backend_of(settings).segment(exercise, tmp_path / name, lambda a, b: None))) == 2
        told = ["-", "set_training_params", f"--params={{'num_epochs': {epochs}}}", "-", "run"]
        assert asked.read_text().splitlines()[-5:] == told


@pytest.mark.parametrize(
    ("algorithms", "told"),
    [
        ("dints,swinunetr", ["set_training_params", "--params={'random_seed': 5}", "-"]),
        ("segresnet", []),
        ("dints,segresnet", []),
    ],
)
def test_a_seed_is_told_to_algorithms_that_take_one(algorithms: str, told: list[str], tmp_path: Path) -> None:
    settings = TrainingSettings.model_validate({"backend": "auto3dseg", "algorithms": algorithms})
    assert Auto3DSeg(settings).command(tmp_path, None, 5)[7:] == ["-", *told, "run"]


@pytest.mark.parametrize("algorithms", ["dints", "segresnet, swinunetr", "segresnet,segresnet2d"])
def test_algorithms_of_gpus_are_refused_where_there_is_none(algorithms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto3dseg, "find_spec", lambda name: True)
    backend = Auto3DSeg(TrainingSettings.model_validate({"backend": "auto3dseg", "algorithms": algorithms}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend.check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused = [name for name in ("dints", "swinunetr") if name in algorithms]
    if not refused:
        backend.check()
        return
    with pytest.raises(InvalidRequestError, match=f"{refused[0]} of Auto3DSeg train on a CUDA GPU alone"):
        backend.check()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 5}, "epochs is not heeded by the backend builtin; accepted: .* auto3dseg"),
        ({"backend": "nnunet", "templates": "there"}, "templates is not heeded by the backend nnunet"),
        ({"backend": "auto3dseg", "trainer": "nnUNetTrainer_1epoch"}, "accepted: .* nnunet"),
        ({"backend": "builtin", "environment": "env"}, "accepted: .* auto3dseg or nnunet"),
        ({"backend": "auto3dseg", "epochs": 0}, "epochs"),
    ],
)
def test_a_setting_that_the_backend_would_not_heed_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings.model_validate(given)


def fake_auto3dseg(python: Path, cases: Path) -> Path:
    """What writes the labels of cases as found, and as the real one splits paths at spaces; where its arguments are."""
    asked = python.parent / "asked"
    script(
        python,
        f"#!/bin/sh\ntest $OMP_NUM_THREADS = {torch.get_num_threads()} || exit 1\nprintf '%s\\n' \"$@\" > {asked}\n"
        f"out=$(sed -n 's/^--work_dir=//p' {asked})/ensemble_output\nmkdir -p $out\n"
        f"for n in limb5 limb6; do cp {cases}/${{n}}_labels.nii.gz $out/${{n}}_ct_ensemble.nii.gz; done\n",
    )
    return asked


# The table ------------------------------------------------------------------------------------------------------------


def test_a_paired_difference_has_the_p_value_of_all_choices_of_signs() -> None:
    rng = np.random.default_rng(0)
    up = paired_difference([0.1, 0.2, 0.1, 0.3, 0.1], rng)
    assert up.mean == pytest.approx(0.16)
    assert 0.1 <= up.low < up.mean < up.high
    assert up.p == pytest.approx(2 / 32)
    assert paired_difference([0.1, -0.1, 0.2, -0.2], rng).p == 1
    assert paired_difference([0.0, 0.0], rng).p == 1
    assert paired_difference(rng.normal(0.5, 0.5, 40).tolist(), rng).p < 0.01


def result(fold: int, ratio: float, dice: dict[str, float]) -> CellResult:
    tested = tuple(
        ScoredCase(
            id=f"c{p}",
            patient=p,
            classes={"liver": Agreement(reference_ml=1, found_ml=1, dice=value, surface_dice=value, hd95_mm=3.0)},
        )
        for p, value in dice.items()
    )
    cell = Cell(fold=fold, num_real="all", ratio=ratio, seed=0)
    return CellResult(cell=cell, real=("a", "b"), synthetic=("s",) if ratio else (), tested=tested)


def test_the_table_tells_folds_average_and_the_change_by_patient(manifest: Path) -> None:
    settings = experiment(manifest, structures=["liver"], regimes=[{"ratios": [0, 1], "seeds": [0]}])
    split = Split(test=("p", "q"), folds=(("r",), ("s",)))
    cells = [
        result(0, 0, {"p": 0.5, "q": 0.7}),
        result(1, 0, {"p": 0.3, "q": 0.7}),
        result(0, 1, {"p": 0.6, "q": 0.8}),
        result(1, 1, {"p": 0.6, "q": 0.8}),
    ]
    report = report_of(settings, split, cells)
    real, both = report.rows
    assert real.folds == pytest.approx((0.6, 0.5))
    assert (real.dice, both.dice) == pytest.approx((0.55, 0.7))
    assert real.change is None
    assert both.change is not None
    assert both.change.mean == pytest.approx(0.15)
    assert both.change.patients == 2
    assert any("no p-value can be below 0.5" in note for note in report.notes)
    header, rows = told_rows(report)
    assert all(len(row) == len(header) for row in rows)
    page = downstream_page(report)
    assert "default-src 'none'" in page
    assert "+0.150" in page
    assert "<script" not in page


def test_fewer_real_cases_are_drawn_as_lines(manifest: Path) -> None:
    settings = experiment(manifest, structures=["liver"], regimes=[{"num_real": [1, "all"], "ratios": [0, 1]}])
    few = [
        each.model_copy(update={"cell": each.cell.model_copy(update={"num_real": 1}), "real": ("a",)})
        for each in (result(0, 0, {"p": 0.2, "q": 0.4}), result(0, 1, {"p": 0.3, "q": 0.4}))
    ]
    cells = [*few, result(0, 0, {"p": 0.5, "q": 0.7}), result(0, 1, {"p": 0.5, "q": 0.7})]
    report = report_of(settings, Split(test=("p", "q"), folds=(("r",), ("s",))), cells)
    assert [(row.num_real, row.ratio) for row in report.rows] == [(1, 0), (1, 1), ("all", 0), ("all", 1)]
    page = downstream_page(report)
    assert "Fewer real cases" in page
    assert page.count("opacity='0.35'/>") == 3  # two points and the line between them


def test_only_trainings_that_have_a_partner_are_compared(manifest: Path) -> None:
    settings = experiment(manifest, structures=["liver"])
    split = Split(test=("p", "q"), folds=(("r",), ("s",)))
    cells = [result(0, 0, {"p": 0.5}), result(0, 1, {"p": 0.6}), result(1, 1, {"p": 1.0})]
    report = report_of(settings, split, cells)
    change = report.rows[1].change
    assert change is not None
    assert change.mean == pytest.approx(0.1)
    assert report.rows[0].folds == (pytest.approx(0.5), None)  # the second is not done, and its place is left free
    late = report_of(settings, split, [result(1, 0, {"p": 0.5})])
    assert told_rows(late)[1][0][3:5] == ("", "0.500")
    assert "<circle cx='170.0' cy='104.0'" in downstream_page(report)  # 0.5 and 0.6 in a square of 260


# Settings -------------------------------------------------------------------------------------------------------------


def test_presets_are_experiments_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    for name in ("sts", "openkbp"):
        found = read_experiment(name, manifest=tmp_path / "m.json")
        assert members_of(found.structures)
        assert found.regimes[0].ratios == (0, 0.5, 1, 1.5)
    with pytest.raises(InvalidConfigError, match="did you mean sts"):
        read_experiment("stss")
    with pytest.raises(InvalidConfigError, match="names no data"):
        read_experiment("sts")
    with pytest.raises(InvalidConfigError, match="did you mean 'steps'"):
        read_experiment("sts", ["training.step=3"], tmp_path)


def test_paths_of_an_experiment_are_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "mine.yaml"
    file.write_text("name: x\nmanifest: ../m.json\nstructures: [liver]\nspacing_mm: 4\n")
    assert read_experiment(str(file)).manifest == tmp_path / "m.json"
    assert read_experiment(str(file)).synthetic.bundle == "ct-small"
    file.write_text(file.read_text() + "synthetic: {bundle: drawn}\n")
    assert read_experiment(str(file)).synthetic.bundle == str(tmp_path / "sub" / "drawn")
    monkeypatch.chdir(tmp_path)
    assert read_experiment(str(file), ["synthetic.bundle=drawn"]).synthetic.bundle == str(tmp_path / "drawn")
    file.write_text("name: x\nmanifest: ../m.json\nstructures: [liver]\nspacing_mm: 4\nsynthetic: 3\n")
    with pytest.raises(InvalidConfigError, match="synthetic"):
        read_experiment(str(file))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ratios": [0.5, 1]}, "lack 0"),
        ({"ratios": [0, -1]}, "0 or more"),
        ({"seeds": []}, "at least one"),
        ({"num_real": [0]}, "at least 1"),
        ({"seeds": [1, 1]}, "one value twice"),
    ],
)
def test_a_regime_that_compares_nothing_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Regime.model_validate(more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"channels": [4]}, r"channels \[4\] .* accepted: at least two of 1 or more"),
        ({"channels": []}, "at least two"),
        ({"channels": [4, 0]}, "at least two of 1 or more"),
        ({"channels": [4] * 5, "patch": [48, 48, 40]}, r"patch \(48, 48, 40\) .* accepted: multiples of 16"),
        ({"channels": [4] * 4, "patch": [8, 8, 8]}, "one voxel .* accepted: a larger patch, or fewer channels"),
    ],
)
def test_a_network_that_cannot_be_built_or_trained_on_the_patch_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings.model_validate(more)


def test_the_smallest_networks_and_patches_that_are_accepted_can_be_trained() -> None:
    for channels, patch in (((4, 8), (8, 8, 8)), ((4,) * 4, (8, 8, 16)), ((4,) * 5, (16, 16, 32))):
        settings = TrainingSettings(channels=channels, patch=patch)
        assert builtin.build(1, settings, 0).train()(torch.zeros(1, 2, *patch)).shape == (1, 1, *patch)


def test_a_device_that_the_built_in_backend_does_not_use_is_refused() -> None:
    with pytest.raises(ValueError, match="the built-in backend trains on the CPU"):
        TrainingSettings(device="cuda")
    assert TrainingSettings(device="cuda", backend="nnunet").device == "cuda"
