"""Label maps bent into other people, and how far they are from where they came from."""

import numpy as np
import pytest

from maisi.anatomy.deform import Warp, resampled, warped
from maisi.anatomy.likeness import Likeness, mean_dice, most_dice
from maisi.anatomy.variation import variation_rules
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.draw import draw_phantom
from maisi.space.grid import Grid
from maisi.space.resample import resample
from maisi.space.volume import LabelMap

V = load_vocabulary()
GRID = Grid.centered((48, 40, 40), (8, 8, 8))


@pytest.fixture(scope="module")
def person() -> LabelMap:
    return draw_phantom("abdomen", Grid.centered((64, 56, 56), (6, 6, 6)), np.random.default_rng(3))


def bent(person: LabelMap, seed: int, strength: float = 1.0) -> LabelMap:
    return warped(person, GRID, Warp.drawn(GRID, np.zeros(3), np.random.default_rng(seed), strength))


def test_a_warp_of_no_strength_shows_the_map_as_it_is(person: LabelMap) -> None:
    same = warped(person, person.grid, Warp.drawn(person.grid, np.zeros(3), np.random.default_rng(0), 0))
    assert (same.array == person.array).mean() > 0.995
    assert set(np.unique(same.array)) == set(np.unique(person.array))


@pytest.mark.parametrize("strength", variation_rules().strengths)
def test_no_strength_folds_space(strength: float) -> None:
    for seed in range(6):
        assert Warp.drawn(GRID, np.zeros(3), np.random.default_rng(seed), strength).least_jacobian > 0.1


def test_the_same_generator_gives_the_same_person_and_another_one_another(person: LabelMap) -> None:
    np.testing.assert_array_equal(bent(person, 1).array, bent(person, 1).array)
    assert (bent(person, 1).array != bent(person, 2).array).mean() > 0.02


def test_no_label_vanishes_that_has_room(person: LabelMap) -> None:
    ids = person.array.copy()
    ids[30, 28, 28] = V.id("left eye")  # a voxel of 6 mm, under half of the new ones
    drawn = bent(LabelMap(ids, person.grid), 5)
    inside = resample(LabelMap(ids, person.grid), GRID.window((4, 4, 4), (40, 32, 32)))
    assert set(np.unique(inside.array)) <= set(np.unique(drawn.array)) | {V.id("left eye")}
    assert (drawn.array == V.id("left eye")).sum() == 1


def test_a_map_that_was_moved_or_stretched_as_a_whole_is_near_and_a_bent_one_is_far(person: LabelMap) -> None:
    grid = person.grid
    moved = LabelMap(person.array, Grid.axis_aligned(grid.shape, (6.6, 5.7, 6.3), (-150, 40, 7)))
    mine = Likeness.of(person)
    assert mine.distance(mine) == 0
    assert Likeness.of(moved).distance(mine) < 0.25
    far = [Likeness.of(bent(person, seed)).distance(mine) for seed in range(3)]
    assert min(far) > 0.25
    another = draw_phantom("abdomen", grid, np.random.default_rng(4))
    assert Likeness.of(another).distance(mine) > min(far)


def test_maps_without_a_common_structure_are_as_far_as_can_be(person: LabelMap) -> None:
    head = draw_phantom("head", Grid.centered((24, 24, 20), (8, 8, 8)), np.random.default_rng(0))
    ids = np.where(np.isin(head.array, np.unique(person.array)), 0, head.array).astype(np.uint8)
    assert Likeness.of(LabelMap(ids, head.grid)).distance(Likeness.of(person)) == 1
    assert most_dice({1: 5.0}, {2: 5.0}) == 0


def test_volumes_bound_the_dice() -> None:
    one, other = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    one[:10, :10], one[12:, :5] = 1, 3
    other[:8, :9], other[12:, :8] = 1, 3
    volumes = ({id: float((x == id).sum()) for id in (1, 3)} for x in (one, other))
    assert mean_dice(one, other, (1, 3)) <= most_dice(*volumes) <= 1


def test_what_is_too_small_for_a_voxel_stays_where_it_is() -> None:
    fine = Grid.centered((30, 30, 30), (1.0, 1.0, 1.0))
    array = np.full(fine.shape, V.id("body"), np.uint8)
    array[20, 11, 14] = V.id("left adrenal gland")
    coarse = Grid.centered((10, 10, 10), (3.0, 3.0, 3.0))
    drawn = resampled(LabelMap(array, fine), coarse)
    (found,) = np.argwhere(drawn.array == V.id("left adrenal gland"))
    np.testing.assert_allclose(coarse.world(found), fine.world((20, 11, 14)), atol=3.0)
