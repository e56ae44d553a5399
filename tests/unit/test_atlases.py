"""Labels by atlases: which fit, at what height, how they vote, and what Hounsfield units decide."""

import json
from pathlib import Path

import numpy as np
import pytest

from maisi.anatomy.body import tissue_labels
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines import atlases
from maisi.pipelines.atlases import Atlas, Match, best_matches, fused, read_atlases, vote
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

vocabulary = load_vocabulary()
LIVER, HEART, BODY = (vocabulary.id(name) for name in ("liver", "heart", "body"))
GRID_MM = 8.0  # coarse and quick


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlases, "GRID_MM", GRID_MM)


def phantom(region: str = "chest", seed: int = 0, planes: int = 28) -> tuple[Volume, LabelMap]:
    rng = np.random.default_rng(seed)
    grid = Grid.centered((44, 36, planes), (GRID_MM,) * 3)
    labels = draw_phantom(region, grid, rng)
    return render_phantom(labels, rng), labels


def atlas(volume: Volume, labels: LabelMap, name: str = "atlas", rendered: bool = False) -> Atlas:
    return Atlas(name, volume, labels, tissue_labels(volume, fat=False), rendered)


def part(labels: LabelMap, start: int, stop: int) -> LabelMap:
    shape = (*labels.grid.shape[:2], stop - start)
    return LabelMap(labels.array[:, :, start:stop], labels.grid.window((0, 0, start), shape))


def test_an_atlas_is_found_at_its_height_wherever_its_origin_is() -> None:
    volume, labels = phantom()
    moved = Grid.axis_aligned(labels.grid.shape, labels.grid.spacing, (0, 0, 500.0))
    there = atlas(Volume(volume.array, moved), LabelMap(labels.array, moved))
    shown = part(tissue_labels(volume, fat=False), 8, 24)
    (match,) = best_matches(shown, [there])
    assert match.shift_mm == pytest.approx(labels.grid.origin[2] - 500.0, abs=1e-6)
    assert match.unlike == pytest.approx(0.0, abs=1e-6)


def test_an_atlas_of_another_region_is_not_used() -> None:
    chest, lower = phantom("chest"), phantom("lower")
    assert best_matches(tissue_labels(lower[0], fat=False), [atlas(*chest)]) == []


def voters(*maps: np.ndarray) -> list[tuple[Match, np.ndarray]]:
    """Atlases alike in weight that put structures where the maps say; each names what it holds."""
    grid = Grid.centered(maps[0].shape, (GRID_MM,) * 3)
    air = Volume(np.full(maps[0].shape, -1000.0, np.float32), grid)
    made = [LabelMap(np.where(ids == 255, 0, ids), grid) for ids in maps]
    return [(Match(Atlas(str(k), air, m, m), 0.0, 0.1), ids) for k, (m, ids) in enumerate(zip(made, maps, strict=True))]


def test_of_the_atlases_that_name_a_structure_half_must_agree() -> None:
    one = np.array([[[LIVER, LIVER, LIVER, 0]]], np.uint8)
    two = np.array([[[LIVER, LIVER, 0, 0]]], np.uint8)
    three = np.array([[[LIVER, 0, 0, 0]]], np.uint8)
    ids, share = fused(voters(one, two, three))
    assert ids.ravel().tolist() == [LIVER, LIVER, 0, 0]
    assert share.ravel() == pytest.approx([1, 2 / 3, 0, 0])


def test_an_atlas_that_lacks_a_structure_or_does_not_reach_does_not_vote_against_it() -> None:
    one = np.array([[[HEART, HEART, LIVER]]], np.uint8)
    without_heart = np.array([[[LIVER, 0, LIVER]]], np.uint8)
    ids, share = fused(voters(one, without_heart))
    assert ids[0, 0, 1] == HEART
    assert share[0, 0, 1] == 1
    beyond = np.array([[[255, 255, 255]]], np.uint8)
    assert fused(voters(one, beyond))[0].tolist() == fused(voters(one))[0].tolist()


def test_a_rendered_atlas_counts_half() -> None:
    volume, labels = phantom()
    real, drawn = (Match(Atlas("one", volume, labels, labels, rendered), 0.0, 0.1) for rendered in (False, True))
    assert drawn.weight == pytest.approx(real.weight / 2)


def test_tumours_and_tissues_of_atlases_are_not_taken_over() -> None:
    tumour = vocabulary.id("hepatic tumor")
    ids, _ = fused(voters(np.array([[[tumour, BODY, LIVER]]], np.uint8)))
    assert ids.ravel().tolist() == [0, 0, LIVER]


def manifest_of(folder: Path, volume: Volume, labels: LabelMap, split: str = "training") -> Path:
    write_volume(volume, folder / "ct.nii.gz")
    write_labels(labels, folder / "labels.nii.gz")
    case = {"id": "one", "image": "ct.nii.gz", "labels_maisi": "labels.nii.gz", "split": split}
    (folder / "manifest.json").write_text(json.dumps({"cases": [case]}))
    return folder / "manifest.json"


def test_held_out_cases_and_maps_of_few_structures_are_no_atlases(tmp_path: Path) -> None:
    volume, labels = phantom(planes=16)
    assert [a.name for a in read_atlases(manifest_of(tmp_path, volume, labels))] == ["one"]
    with pytest.raises(InvalidRequestError, match="no atlas; accepted: training cases"):
        read_atlases(manifest_of(tmp_path, volume, labels, split="validation"))
    few = LabelMap(np.where(labels.array == LIVER, LIVER, np.uint8(BODY)), labels.grid)
    with pytest.raises(InvalidRequestError, match="no atlas"):
        read_atlases(manifest_of(tmp_path, volume, few))
    with pytest.raises(InvalidRequestError, match="no atlas"):
        read_atlases(manifest_of(tmp_path, volume, labels), leave_out=("one",))


def test_an_image_that_no_atlas_shows_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no atlas shows 60 mm of what the image shows"):
        vote(phantom("lower")[0], [atlas(*phantom("chest"))])
