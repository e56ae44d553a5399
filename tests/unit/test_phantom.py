"""The phantom: anatomy in its place, one person on every grid, a CT that shows the labels."""

import time

import numpy as np
import pytest

from maisi.anatomy.regions import BodyRegion, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

vocabulary = load_vocabulary()
GRID = Grid.centered((80, 64, 80), (5, 5, 5))
REGIONS = ("head", "neck", "head-neck", "chest", "abdomen", "pelvis", "limbs")


def drawn(region: str, seed: int = 0, grid: Grid = GRID) -> LabelMap:
    return draw_phantom(region, grid, np.random.default_rng(seed))


def centre(labels: LabelMap, name: str) -> np.ndarray:
    return labels.grid.world(np.argwhere(labels.array == vocabulary.id(name)).mean(0))


def volume_ml(labels: LabelMap, *names: str) -> float:
    ids = [vocabulary.id(name) for name in names]
    return float(np.isin(labels.array, ids).sum() * np.prod(labels.grid.spacing) / 1000)


@pytest.fixture(scope="module")
def chest() -> LabelMap:
    return drawn("chest")


@pytest.fixture(scope="module")
def abdomen() -> LabelMap:
    return drawn("abdomen")


def test_right_is_right_front_is_front_and_up_is_up(chest: LabelMap, abdomen: LabelMap) -> None:
    assert centre(abdomen, "liver")[0] > 20 > -20 > centre(abdomen, "spleen")[0]
    assert centre(abdomen, "right kidney")[0] > 0 > centre(abdomen, "left kidney")[0]
    assert centre(chest, "heart")[0] < 5
    assert centre(chest, "sternum")[1] > centre(chest, "heart")[1] > centre(chest, "vertebrae T8")[1]
    assert centre(chest, "vertebrae T1")[2] > centre(chest, "vertebrae T12")[2]
    assert centre(abdomen, "gallbladder")[1] > centre(abdomen, "right kidney")[1]


def test_organs_have_the_size_of_an_adults() -> None:
    sizes = {
        name: np.mean(
            [volume_ml(drawn("abdomen", seed, Grid.centered((72, 56, 64), (5, 5, 5))), name) for seed in range(3)]
        )
        for name in ("liver", "spleen", "right kidney", "pancreas")
    }
    assert 900 < sizes["liver"] < 2200
    assert 90 < sizes["spleen"] < 350
    assert 90 < sizes["right kidney"] < 260
    assert 30 < sizes["pancreas"] < 150


def test_both_lungs_hold_some_litres_in_five_lobes(chest: LabelMap) -> None:
    lobes = [vocabulary.name(id) for id in vocabulary.group("lungs") if vocabulary.name(id) != "lungs"]
    assert all(volume_ml(chest, lobe) > 150 for lobe in lobes)
    assert 2500 < volume_ml(chest, *lobes) < 7000


def test_all_regions_together_show_more_than_a_hundred_structures() -> None:
    ids = {int(id) for region in REGIONS for id in np.unique(drawn(region).array)}
    assert len(ids - {0}) > 110
    assert ids - {0} <= set(vocabulary.ids)


@pytest.mark.parametrize("region", ["head", "chest", "abdomen", "lower"])
def test_a_region_shows_itself(region: str) -> None:
    span = region_span(drawn(region, 3, Grid.centered((48, 48, 48), (5, 5, 4))))
    assert BodyRegion.named(region) in span.regions


def test_the_same_state_gives_the_same_person_and_another_state_another() -> None:
    assert (drawn("chest", 5).array == drawn("chest", 5).array).all()
    assert (drawn("chest", 5).array != drawn("chest", 6).array).mean() > 0.02


def test_a_person_looks_the_same_on_a_finer_grid() -> None:
    coarse = drawn("abdomen", 1, Grid.centered((40, 32, 33), (9, 9, 9)))
    fine = drawn("abdomen", 1, Grid.centered((120, 96, 99), (3, 3, 3)))
    assert (coarse.array == fine.array[1::3, 1::3, 1::3]).mean() > 0.99


def test_a_grid_painted_in_slabs_is_the_grid_painted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn("head-neck", 2).array
    monkeypatch.setattr("maisi.phantom.draw.CHUNK_VOXELS", 80 * 64 * 13)
    assert (drawn("head-neck", 2).array != whole).mean() < 1e-3


def test_ninety_six_cubed_takes_a_few_seconds_at_most() -> None:
    drawn("chest", 0, Grid.centered((8, 8, 8), (5, 5, 5)))
    start = time.process_time()
    drawn("chest", 0, Grid.centered((96, 96, 96), (4, 4, 4)))
    assert time.process_time() - start < 6  # one to two on a quiet core


def test_a_field_of_view_off_the_body_is_empty_and_a_tiny_one_is_fine() -> None:
    assert drawn("limbs", 0, Grid.centered((4, 4, 4), (1, 1, 1))).array.shape == (4, 4, 4)
    wide = drawn("head", 0, Grid.centered((60, 60, 12), (10, 10, 10))).array
    assert (wide[:, :, 0] == 0).any()
    assert (wide[0] == 0).all()


def test_an_unknown_region_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"'brian'; accepted: .*abdomen"):
        drawn("brian")


def test_the_ct_shows_its_labels(chest: LabelMap) -> None:
    ct = render_phantom(chest, np.random.default_rng(0))
    assert ct.grid == chest.grid
    assert ct.array.dtype == np.float32
    assert -1024 <= ct.array.min() <= ct.array.max() <= 3071
    bones = np.isin(chest.array, vocabulary.group("bones"))
    lungs = np.isin(chest.array, vocabulary.group("lungs"))
    assert ct.array[chest.array == 0].mean() < -930
    assert -900 < ct.array[lungs].mean() < -600
    assert ct.array[bones].mean() > 170
    assert ct.array[chest.array == vocabulary.id("fat")].mean() < -40


def test_renderings_differ_by_their_seed_alone(chest: LabelMap) -> None:
    one, same, other = (render_phantom(chest, np.random.default_rng(seed)).array for seed in (1, 1, 2))
    assert (one == same).all()
    assert np.abs(one - other).mean() > 5


def test_labels_of_body_alone_get_fat_under_the_skin() -> None:
    x, y, _ = GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1)).transpose(3, 0, 1, 2)
    radius = np.hypot(x, y)
    labels = LabelMap(np.where(radius < 120, np.uint8(vocabulary.id("body")), np.uint8(0)), GRID)
    ct = render_phantom(labels, np.random.default_rng(0)).array
    assert ct[(radius > 105) & (radius < 112)].mean() < -40 < 0 < ct[radius < 60].mean()
