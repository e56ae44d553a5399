"""Sets to compare, of manifests and of folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi.errors import InvalidRequestError
from maisi.evaluation.sets import image_set, label_set, labelled_set

SETS = pytest.mark.parametrize("open_set", [image_set, labelled_set, label_set])
OpenSet = Callable[..., list[Any]]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two cases for training and one for validation, all with labels."""
    splits = {"a": "training", "b": "training", "c": "validation"}
    cases = [
        {"id": id, "image": f"{id}_ct.nii.gz", "labels_maisi": f"{id}_labels.nii.gz", "split": split}
        for id, split in splits.items()
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases}))
    return tmp_path / "manifest.json"


@SETS
def test_a_split_of_a_manifest_is_a_set(open_set: OpenSet, manifest: Path) -> None:
    assert len(open_set(manifest)) == 3
    assert len(open_set(manifest, "training")) == 2
    with pytest.raises(InvalidRequestError, match=r"has 1 .* of split validation; a comparison needs at least 2"):
        open_set(manifest, "validation")


@SETS
def test_a_split_that_a_manifest_lacks_is_refused_with_those_that_it_has(open_set: OpenSet, manifest: Path) -> None:
    with pytest.raises(InvalidRequestError, match="has no split 'testing'; accepted: training, validation"):
        open_set(manifest, "testing")


@SETS
def test_a_folder_of_files_knows_no_split(open_set: OpenSet, tmp_path: Path) -> None:
    for name in ("a_ct", "a_labels", "b_ct", "b_labels"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert len(open_set(tmp_path)) == 2
    with pytest.raises(InvalidRequestError, match="a folder of files, which knows no split training"):
        open_set(tmp_path, "training")


@SETS
def test_what_failed_its_check_is_in_no_set_and_every_format_that_is_read_is(open_set: OpenSet, tmp_path: Path) -> None:
    (tmp_path / "failed").mkdir()
    for name in ("a_ct.nii.gz", "a_labels.nii", "b_ct.mha", "b_labels.seg.nrrd", "failed/c_ct.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "failed" / "c_labels.nii.gz").touch()
    assert [each.name if hasattr(each, "name") else each.id for each in open_set(tmp_path)] in (
        ["a_ct.nii.gz", "b_ct.mha"],
        ["a_labels.nii", "b_labels.seg.nrrd"],
        ["a", "b"],
    )


@SETS
def test_a_volume_is_no_set(open_set: OpenSet, tmp_path: Path) -> None:
    (tmp_path / "a_ct.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InvalidRequestError, match=r"a_ct\.nii\.gz is a single file; accepted: a manifest, or a folder"):
        open_set(tmp_path / "a_ct.nii.gz")


@pytest.mark.parametrize("open_set", [image_set, labelled_set])
def test_files_whose_results_would_have_one_name_are_refused(open_set: OpenSet, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b_ct.nii.gz", "a/b_labels.nii.gz", "a__b_ct.nii.gz", "a__b_labels.nii.gz", "c_ct.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidRequestError, match=r"files of the cases a/b\S* and a__b\S* would have one name; rename"):
        open_set(tmp_path)


def test_pairs_of_one_name_in_two_formats_are_refused(tmp_path: Path) -> None:
    for name in ("a_ct.nii.gz", "a_ct.mha", "a_labels.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidRequestError, match="case ids must be unique; used twice: a"):
        labelled_set(tmp_path)


def test_files_of_one_name_in_several_folders_are_of_several_patients(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct.nii.gz").touch()
    assert [each.patient for each in image_set(tmp_path)] == ["p1/ct", "p2/ct"]


@SETS
def test_a_manifest_without_what_is_looked_for_has_none(open_set: OpenSet, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [{"id": "a"}]}))
    with pytest.raises(InvalidRequestError, match=r"has 0 .*; a comparison needs at least 2"):
        open_set(tmp_path / "manifest.json", "training")
