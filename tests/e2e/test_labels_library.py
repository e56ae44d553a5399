"""`maisi labels prepare` and `maisi labels library`: from label maps of anywhere to drawn ones."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, files_in

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import read_manifest
from maisi.phantom.draw import draw_phantom
from maisi.space.files import write_labels
from maisi.space.grid import Grid

V = load_vocabulary()
SMALL = ("--size", 24, 20, 20, "--spacing", 14, 14, 14)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three abdomens in a folder."""
    folder = tmp_path_factory.mktemp("maps")
    for seed in range(3):
        labels = draw_phantom("abdomen", Grid.centered((34, 28, 28), (12, 12, 12)), np.random.default_rng(seed))
        write_labels(labels, folder / f"p{seed}.nii.gz")
    return folder


def test_a_library_is_filled_listed_and_drawn_from(maisi: Maisi, maps: Path, tmp_path: Path) -> None:
    lib, out = tmp_path / "lib", tmp_path / "out"
    answer = maisi("labels", "library", "add", lib, maps / "p0.nii.gz", maps / "p1.nii.gz", "--licence", "CC0")
    assert answer.code == 0, answer.err
    again = maisi("labels", "library", "add", lib, maps)
    assert again.code == 0, again.err
    assert "p0: already there" in again.err

    listed = maisi("labels", "library", "list", lib, "--region", "abdomen", "--structure", "liver", "--json")
    assert [entry["id"] for entry in listed.json] == ["p0", "p1", "p2"]
    assert [entry["licence"] for entry in listed.json] == ["CC0", "CC0", ""]

    drawn = maisi(
        "labels", "library", "draw", lib, "--region", "abdomen", *SMALL, "-n", 2,
        "--anatomy", "spleen=200ml", "gallbladder=none", "--out", out,
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    told = json.loads((out / "sample_001_origin.json").read_text())
    assert told["from"]["id"] in {"p0", "p1", "p2"}
    assert told["distance"] >= 0.25
    assert told["obtained_ml"]["spleen"] == pytest.approx(200, rel=0.05)
    ids = np.asarray(nib.load(out / "sample_001_labels.nii.gz").dataobj)
    assert ids.shape == (24, 20, 20)
    assert not (ids == V.id("gallbladder")).any()


def test_generate_draws_its_label_maps_from_a_library(
    maisi: Maisi, tiny_bundle: Path, maps: Path, tmp_path: Path
) -> None:
    lib, out = tmp_path / "lib", tmp_path / "out"
    assert maisi("labels", "library", "add", lib, maps).code == 0
    answer = maisi(
        "generate", "-b", tiny_bundle, "--library", lib, "--region", "abdomen", *SMALL, "--steps", 1,
        "--anatomy", "spleen=200ml", "-o", out,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    ids = np.asarray(nib.load(out / "sample_000_labels.nii.gz").dataobj)
    assert (ids == V.id("spleen")).sum() * 14**3 / 1000 == pytest.approx(200, rel=0.05)


def test_what_a_library_does_not_have_is_refused(maisi: Maisi, maps: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    assert maisi("labels", "library", "add", lib, maps).code == 0
    answer = maisi("labels", "library", "draw", lib, "--region", "head", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "none of the 3 maps of the library fits: 3 without head" in answer.err
    assert maisi("labels", "library", "draw", maps, "--out", tmp_path / "out").code == 2
    assert "out" not in {path.name for path in tmp_path.iterdir()}


def test_maps_of_another_vocabulary_are_prepared_and_what_is_wrong_stops_no_other(maisi: Maisi, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    ids = np.zeros((20, 20, 20), np.uint8)
    ids[4:12, 4:12, 4:12] = 5  # the liver of TotalSegmentator
    nib.save(nib.Nifti1Image(ids[::-1], np.diag([-8.0, 8, 8, 1])), source / "one.nii.gz")
    nib.save(nib.Nifti1Image(ids * 0, np.eye(4)), source / "two.nii.gz")

    answer = maisi(
        "labels", "prepare", source, "--numbering", "totalsegmentator", "--enclose", "--spacing", 4, 4, 4, "-o", out
    )
    assert answer.code == 0, answer.err
    assert "two.nii.gz: every voxel is background" in answer.err
    assert files_in(out) == ["manifest.jsonl", "one_labels.nii.gz", "run.json", "run.yaml"]
    (case,) = read_manifest(out)
    assert case.labels_present == ("liver", "body")
    assert (case.shape, case.span) == ((60, 60, 40), ("abdomen", "abdomen"))  # with room for the body
    made = nib.load(out / "one_labels.nii.gz")
    assert nib.aff2axcodes(made.affine) == ("R", "A", "S")
    ids = np.asarray(made.dataobj)
    assert (ids == V.id("liver")).sum() == 16**3
    assert not np.concatenate([ids[[0, -1]].ravel(), ids[:, [0, -1]].ravel()]).any()
