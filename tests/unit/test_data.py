"""Manifests, cases in our vocabulary, variations of a case."""

import json
from pathlib import Path

import numpy as np
import pytest

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.augment import on_grid, vary_grid
from maisi.data.cases import case_span, own_labels, read_case
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidConfigError, InvalidLabelsError, InvalidRequestError
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

GRID = Grid.centered((40, 32, 24), (3.0, 3.0, 4.0))


def scan() -> Volume:
    hu = np.full(GRID.shape, -1000.0, np.float32)
    hu[6:34, 5:27, :] = 40.0
    return Volume(hu, GRID)


def manifest(folder: Path, *cases: dict) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"cases": cases}))
    return path


def test_paths_of_a_manifest_are_relative_to_it(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"id": "a", "image": "a/ct.nii.gz"})
    (case,) = read_manifest(path)
    assert case.image == tmp_path / "a/ct.nii.gz"
    assert case.labels is None


@pytest.mark.parametrize(
    ("cases", "said"),
    [([{"id": "a", "imege": "x"}], "imege"), ([{"id": "a"}, {"id": "a"}], "used twice: a"), ([{}], "id")],
)
def test_a_manifest_that_is_wrong_says_where(tmp_path: Path, cases: list[dict], said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        read_manifest(manifest(tmp_path, *cases))


def test_a_missing_manifest_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cases"):
        read_manifest(tmp_path / "none.json")


def test_labels_with_names_of_their_own_come_in_our_vocabulary(tmp_path: Path) -> None:
    vocabulary = load_vocabulary()
    ids = np.zeros(GRID.shape, np.uint8)
    ids[10:14, 10:14, :] = 1
    ids[20:24, 10:14, :] = 2
    write_labels(LabelMap(ids, GRID), tmp_path / "labels.nii.gz")
    case = Case(id="a", labels=tmp_path / "labels.nii.gz", label_names={"1": "Brainstem", "2": "celiac_trunk"})
    labels = own_labels(case)
    assert labels is not None
    assert set(np.unique(labels.array)) == {0, vocabulary.id("brainstem")}


def test_every_body_voxel_of_a_case_has_a_label(tmp_path: Path) -> None:
    write_volume(scan(), tmp_path / "ct.nii.gz")
    volume, labels = read_case(Case(id="a", image=tmp_path / "ct.nii.gz"))
    assert (labels.array[volume.array > 0] > 0).all()
    assert (labels.array[:3] == 0).all()


def test_labels_off_the_grid_of_their_scan_are_refused(tmp_path: Path) -> None:
    write_volume(scan(), tmp_path / "ct.nii.gz")
    other = Grid.centered(GRID.shape, (2.0, 3.0, 4.0))
    write_labels(LabelMap(np.full(GRID.shape, 1, np.uint8), other), tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match="grid"):
        read_case(Case(id="a", image=tmp_path / "ct.nii.gz", labels_maisi=tmp_path / "labels.nii.gz"))


def test_the_words_of_a_manifest_name_the_region_span() -> None:
    labels = LabelMap(np.full(GRID.shape, load_vocabulary().id("liver"), np.uint8), GRID)
    named = case_span(Case(id="a", region="head, neck, shoulders"), labels)
    assert named == RegionSpan(BodyRegion.HEAD, BodyRegion.CHEST)
    assert case_span(Case(id="a"), labels) == RegionSpan(BodyRegion.ABDOMEN, BodyRegion.ABDOMEN)


def test_variations_keep_to_spacing_size_and_multiple() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        grid = vary_grid(GRID, rng, (2.0, 5.0), (32, 32, 32), 8)
        assert all(n % 8 == 0 and n <= 32 for n in grid.shape)
        assert all(2.0 <= s <= 5.1 for s in grid.spacing)
        assert grid.spacing[2] >= 0.75 * GRID.spacing[2] - 1e-6


def test_a_variation_shows_the_same_place_of_the_patient() -> None:
    volume = scan()
    labels = LabelMap((volume.array > 0).astype(np.uint8), GRID)
    grid = vary_grid(GRID, np.random.default_rng(1), (3.0, 4.0), (64, 64, 64), 8)
    part, part_labels = on_grid(volume, labels, grid)
    agreement = (part.array > -480) == (part_labels.array > 0)
    assert agreement.mean() > 0.97
    assert part_labels.array.any()
