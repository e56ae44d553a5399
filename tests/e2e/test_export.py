"""`maisi export`: data sets that other tools, and we ourselves, read as they were."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, files_in

from maisi.anatomy.numberings import Numbering, in_our_ids
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import STORED, Case, write_manifest
from maisi.data.sources.find import find_cases
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.origin import read_provenance
from maisi.space.volume import LabelMap
from maisi.storage.provenance import Provenance

NAMES = {"monai": "list", "msd": "Task20_Made", "nnunet": "Dataset501_Made"}
LAYOUTS = {"monai": "MONAI datalist", "msd": "MSD dataset", "nnunet": "nnU-Net raw"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases: two for training, one for validation, one for testing, and one without labels."""
    folder = tmp_path_factory.mktemp("store")
    cases = []
    for index, split in enumerate(("training", "training", "validation", "testing", "training")):
        rng, grid = np.random.default_rng(index), Grid.centered((24, 20, 18), (14.0, 14.0, 14.0 + index))
        labels = draw_phantom(("abdomen", "chest")[index % 2], grid, rng)
        write_volume(render_phantom(labels, rng), folder / f"c{index}_ct.nii.gz")
        write_labels(LabelMap(labels.array.astype(np.uint8), grid), folder / f"c{index}_labels.nii.gz")
        mine = None if index == 4 else Path(f"c{index}_labels.nii.gz")
        image = Path(f"c{index}_ct.nii.gz")
        cases.append(
            Case(id=f"c{index}", image=image, labels_maisi=mine, split=split, licence="CC0", patient=f"p{index}")
        )
    write_manifest(cases, folder / STORED)
    return folder


def exported(maisi: Maisi, store: Path, to: str, tmp_path: Path, *more: object) -> Path:
    out = tmp_path / NAMES[to]
    answer = maisi("export", store, "--to", to, "--out", out, *more)
    assert answer.code == 0, answer.err
    assert answer.out == f"{out}\n"
    return out


def test_a_folder_of_pairs_is_exported_without_what_failed_its_check(maisi: Maisi, store: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "failed").mkdir(parents=True)
    for name in ("c0_ct.nii.gz", "c0_labels.nii.gz", "c1_ct.nii.gz", "c1_labels.nii.gz"):
        shutil.copy(store / name, tmp_path / "out" / ("failed" if name.startswith("c1") else "") / name)
    made = Provenance(maisi="1", command="generate", request={"seed": 7}, seed=7, bundle=None, inputs={})
    write_volume(read_volume(store / "c0_ct.nii.gz"), tmp_path / "out" / "c0_ct.nii.gz", made)
    out = exported(maisi, tmp_path / "out", "nnunet", tmp_path)
    (case,) = find_cases(out).cases
    assert case.id == "c0"
    assert read_provenance(case.image).request == {"seed": 7}
    (tmp_path / "none").mkdir()
    answer = maisi("export", tmp_path / "none", "--to", "monai", "--out", tmp_path / "list")
    assert (answer.code, "a folder of files NAME_ct with NAME_labels" in answer.err) == (2, True)
    answer = maisi("export", tmp_path / "nothing", "--to", "msd", "--out", tmp_path / "no")
    assert (answer.code, "a folder of files NAME_ct with NAME_labels" in answer.err) == (2, True)


@pytest.mark.parametrize("to", ["monai", "msd", "nnunet"])
def test_what_is_exported_is_read_back_voxel_by_voxel(to: str, maisi: Maisi, store: Path, tmp_path: Path) -> None:
    out = exported(maisi, store, to, tmp_path)
    found = find_cases(out / "datalist.json" if to == "monai" else out)
    assert found.layout == LAYOUTS[to]
    assert sorted(case.id.removesuffix("_0000") for case in found.cases) == ["c0", "c1", "c2", "c3", "c4"]
    for case in found.cases:
        original, ours = read_volume(store / f"{case.id}_ct.nii.gz"), read_volume(case.image)
        assert np.array_equal(original.array, ours.array)
        assert original.grid == ours.grid
        assert case.modality == "ct"
        if case.labels:
            numbering = Numbering(name="its", title="its own", names=dict(case.labels[0].names or {}))
            labels, _ = in_our_ids(read_labels(case.labels[0].path), numbering, load_vocabulary(), case.labels[0].path)
            assert np.array_equal(labels.array, read_labels(store / f"{case.id}_labels.nii.gz").array)
    labelled = {case.id for case in found.cases if case.labels}
    assert labelled == ({"c0", "c1", "c2"} if to == "msd" else {"c0", "c1", "c2", "c3"})  # MSD lists tests by image
    assert {case.id for case in found.cases if case.split == "testing"} == {"c3", "c4"}


@pytest.mark.parametrize("to", ["monai", "msd", "nnunet"])
def test_a_healthy_case_has_a_label_file_without_labels(to: str, maisi: Maisi, store: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cases = [Case(id="ill", image=store / "c0_ct.nii.gz", labels_maisi=store / "c0_labels.nii.gz")]
    empty = np.zeros_like(read_labels(store / "c0_labels.nii.gz").array)
    write_labels(LabelMap(empty, read_volume(store / "c0_ct.nii.gz").grid), tmp_path / "in" / "none.nii.gz")
    told = {"labels": tmp_path / "in" / "none.nii.gz", "label_names": {"1": "liver"}}
    cases.append(Case(id="healthy", image=store / "c0_ct.nii.gz", **told))
    write_manifest(cases, tmp_path / "in" / STORED)
    out = exported(maisi, tmp_path / "in", to, tmp_path)
    assert not read_labels(out / "labelsTr" / "healthy.nii.gz").array.any()


def test_an_nnunet_folder_keeps_the_rules_that_nnunet_checks(maisi: Maisi, store: Path, tmp_path: Path) -> None:
    out = exported(maisi, store, "nnunet", tmp_path)
    content = json.loads((out / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    ids = list(content["labels"].values())
    assert ids == list(range(len(ids)))
    assert content["labels"]["background"] == 0
    ending = content["file_ending"]
    images, labels = (sorted(path.name for path in (out / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    assert [name.removesuffix(f"_0000{ending}") for name in images] == [name.removesuffix(ending) for name in labels]
    assert len(labels) == content["numTraining"] == 3
    seen: set[int] = set()
    for name in labels:
        label, image = (
            nib.load(out / "labelsTr" / name),
            nib.load(out / "imagesTr" / name.replace(ending, f"_0000{ending}")),
        )
        assert label.shape == image.shape
        assert np.array_equal(label.affine, image.affine)
        assert np.isfinite(np.asarray(image.dataobj)).all()
        seen |= set(np.unique(np.asarray(label.dataobj)).tolist())
    assert seen <= set(ids)


def test_monai_reads_the_lists(maisi: Maisi, store: Path, tmp_path: Path) -> None:
    monai = pytest.importorskip("monai.data")
    out = exported(maisi, store, "monai", tmp_path)
    listed = monai.load_decathlon_datalist(out / "datalist.json", data_list_key="training")
    assert [Path(entry["label"]).is_file() for entry in listed] == [True, True]
    content = json.loads((out / "datalist.json").read_text())
    assert [len(content[split]) for split in ("training", "validation", "testing")] == [2, 1, 2]
    listed = monai.load_decathlon_datalist(exported(maisi, store, "msd", tmp_path) / "dataset.json", True, "training")
    assert len(listed) == 3


@pytest.mark.parametrize("words", [("--classes", "liver", "lungs"), ("--classes", "liver", "--classes", "lungs")])
def test_classes_are_numbered_from_one_in_their_order(
    words: tuple[str, ...], maisi: Maisi, store: Path, tmp_path: Path
) -> None:
    out = exported(maisi, store, "nnunet", tmp_path, *words)
    assert json.loads((out / "dataset.json").read_text())["labels"] == {"background": 0, "liver": 1, "lungs": 2}
    ours, vocabulary = read_labels(out / "labelsTr" / "c0.nii.gz").array, load_vocabulary()
    original = read_labels(store / "c0_labels.nii.gz").array
    assert np.array_equal(ours == 1, original == vocabulary.id("liver"))
    assert np.array_equal(ours == 2, np.isin(original, vocabulary.group("lungs")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "nnunet"), "accepted: DatasetNNN_Name"),
        (("--to", "nnunett"), "should be 'monai', 'msd', 'nnunet', 'dicom'"),
        (("--to", "msd", "--classes", "livre"), "did you mean 'liver'"),
        (("--to", "msd", "other"), "unexpected 'other'"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    arguments: tuple[Any, ...], message: str, maisi: Maisi, store: Path, tmp_path: Path
) -> None:
    answer = maisi("export", store, *arguments, "--out", tmp_path / "out")
    assert answer.code == 2
    assert message in answer.err
    assert files_in(tmp_path) == []


def test_what_no_run_has_left_and_what_is_read_is_not_written_over(maisi: Maisi, store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    answer = maisi("export", store, "--to", "monai", "--out", tmp_path / "mine", "--overwrite")
    assert (answer.code, "holds what no run of maisi left (thesis.txt)" in answer.err) == (2, True), answer.err
    assert files_in(tmp_path / "mine") == ["thesis.txt"]
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store" / "run.json").write_text("{}")
    answer = maisi("export", tmp_path / "store", "--to", "monai", "--out", tmp_path / "store", "--overwrite")
    assert (answer.code, "is read; accepted: another place" in answer.err) == (2, True), answer.err
    out = exported(maisi, store, "monai", tmp_path)
    again = maisi("export", store, "--to", "monai", "--out", out, "--overwrite")
    assert again.code == 0, again.err


def test_a_folder_without_labels_or_of_two_modalities_is_refused(maisi: Maisi, store: Path, tmp_path: Path) -> None:
    image = store / "c0_ct.nii.gz"
    write_manifest([Case(id="a", image=image)], tmp_path / "none.jsonl")
    answer = maisi("export", tmp_path / "none.jsonl", "--to", "msd", "--out", tmp_path / "out")
    assert (answer.code, "no case shows any structure" in answer.err) == (2, True)
    write_manifest([Case(id="a", image=image), Case(id="b", image=image, modality="mr")], tmp_path / "two.jsonl")
    answer = maisi("export", tmp_path / "two.jsonl", "--to", "msd", "--out", tmp_path / "out")
    assert (answer.code, "holds ct and mr; accepted: cases of one modality" in answer.err) == (2, True)
