"""Manifests, cases in our vocabulary, variations of a case."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.augment import on_grid, vary_grid
from maisi.data.cases import case_span, own_labels, read_case
from maisi.data.dataset import NamedVolumes, at_spacings, patch_source
from maisi.data.manifest import Case, check_cases, read_manifest, write_manifest
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
    [
        ([{"id": "a", "imege": "x"}], "imege"),
        ([{"id": "a"}, {"id": "a"}], "used twice: a"),
        ([{}], "id"),
        ([{"id": "a/b"}, {"id": "a__b"}], "the cases a/b and a__b would have one name"),
    ],
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "case p7: .*gone.nii.gz"),
        ({"image": None}, "case p7: it has no image"),
        ({"label_names": {"liver": "1"}, "labels": "l.nii.gz"}, "case p7: label_names has the key 'liver'"),
    ],
)
def test_what_is_wrong_with_a_case_is_told_with_its_id(tmp_path: Path, more: dict, said: str) -> None:
    grid = Grid.centered((8, 8, 8), (2.0, 2.0, 2.0))
    image = tmp_path / "gone.nii.gz"
    if "labels" in more:
        image = tmp_path / "ct.nii.gz"
        write_volume(Volume(np.linspace(-1000, 500, 512, dtype=np.float32).reshape(8, 8, 8), grid), image)
        write_labels(LabelMap(np.ones((8, 8, 8), np.uint8), grid), tmp_path / "l.nii.gz")
        more = more | {"labels": tmp_path / "l.nii.gz"}
    case = Case.model_validate({"id": "p7", "image": image, **more})
    with pytest.raises(InvalidRequestError, match=said):
        read_case(case)
    if "labels" not in more:
        volumes = NamedVolumes(case.id, partial(at_spacings, case, ()))
        with pytest.raises(InvalidRequestError, match=said):
            patch_source([(1.0, [volumes])])


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


def noisy(seed: int, shape: tuple[int, int, int]) -> Volume:
    hu = np.random.default_rng(seed).uniform(-1000, 1000, shape).astype(np.float32)
    return Volume(hu, Grid.centered(shape, (3.0, 3.0, 3.0)))


def test_patches_are_the_same_however_many_volumes_stay_in_memory() -> None:
    read: list[int] = []

    def load(seed: int) -> list[Volume]:
        read.append(seed)
        return [noisy(seed, (12, 10, 8)), noisy(seed + 10, (6, 5, 4))]

    loads = [NamedVolumes(str(seed), lambda seed=seed: load(seed)) for seed in range(3)]
    patches, reads = [], []
    for kept_bytes in (1 << 30, 4000, 0):
        read.clear()
        source = patch_source([(0.3, loads[:1]), (0.7, loads[1:])], kept_bytes)
        rng = np.random.default_rng(1)
        patches.append([source.draw(2, (6, 6, 6), rng).images for _ in range(10)])
        reads.append(len(read))
    for others in patches[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(patches[0], others, strict=True))
    assert reads[0] == 3 < reads[1] < reads[2] == 3 + 20


def test_groups_are_drawn_by_weight_and_volumes_by_the_root_of_their_size() -> None:
    first, second = [noisy(0, (8, 8, 8)), noisy(1, (16, 16, 16))], [noisy(2, (4, 4, 4))]
    source = patch_source(
        [(1.0, [NamedVolumes("a", lambda: first)]), (0.0, []), (3.0, [NamedVolumes("b", lambda: second)])]
    )
    assert source.weights == pytest.approx([0.25 / 3, 0.5 / 3, 0.75])
    assert [array.shape for array in source.arrays] == [(8, 8, 8), (16, 16, 16), (4, 4, 4)]
    assert source.names == ("a", "a", "b")
    assert source.num_cases == 2


def test_without_a_volume_there_is_nothing_to_train_on() -> None:
    with pytest.raises(InvalidRequestError, match="at least one training case"):
        patch_source([(1.0, [])])


def test_a_case_is_shown_as_stored_and_at_coarser_spacings(tmp_path: Path) -> None:
    write_volume(scan(), tmp_path / "ct.nii.gz")
    volumes = at_spacings(Case(id="a", image=tmp_path / "ct.nii.gz"), (2.0, 4.5, 6.0))
    assert [volume.grid.spacing for volume in volumes] == [(3.0, 3.0, 4.0), (6.0, 6.0, 6.0)]


def test_cases_whose_files_are_gone_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    here = Case(id="a", image=tmp_path / "a.nii")
    check_cases([here])
    gone = Case(id="b", image=tmp_path / "a.nii", labels_maisi=tmp_path / "gone.nii")
    with pytest.raises(InvalidRequestError, match=r"case b: no file at .*gone\.nii; accepted"):
        check_cases([here, gone])
    with pytest.raises(InvalidRequestError, match="and 1 files more"):
        check_cases([gone, gone])


def test_a_patient_on_two_sides_of_a_split_is_refused() -> None:
    sides = [Case(id="a", patient="P"), Case(id="b", patient="P", split="validation"), Case(id="c", patient="Q")]
    with pytest.raises(InvalidRequestError, match="patient P is on two sides of the split: a in training, b in valid"):
        check_cases(sides)
    check_cases([Case(id="a"), Case(id="b", split="validation")])  # of patients that nobody named nothing is known


def test_a_manifest_may_hold_any_character(tmp_path: Path) -> None:
    told = "one\u2028line, another\u0085line"
    write_manifest([Case(id="a", image=Path("a.nii"), notes=told), Case(id="b")], tmp_path / "manifest.jsonl")
    assert [case.notes for case in read_manifest(tmp_path / "manifest.jsonl")] == [told, ""]
