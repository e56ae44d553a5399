"""What a drawn label map is mended by."""

import numpy as np
import pytest

from maisi.anatomy.mending import mended
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.draw import draw_phantom
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id


def box_map() -> np.ndarray:
    """A body with a liver on one side and a lung lobe on the other."""
    ids = np.zeros((40, 30, 30), np.uint8)
    ids[4:36, 4:26, 4:26] = ID("body")
    ids[6:18, 8:22, 8:22] = ID("liver")
    ids[24:34, 8:22, 8:22] = ID("right lung lower lobe")
    return ids


def mend(ids: np.ndarray, lesions: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> np.ndarray:
    labels = LabelMap(ids, Grid.centered(ids.shape, (5.0, 5.0, 5.0)))
    found = mended(labels, VOCABULARY, lesions=[ID(name) for name in lesions], absent=[ID(name) for name in absent])
    return found.array


def test_a_map_without_fault_stays_as_it_is() -> None:
    assert np.array_equal(mend(box_map()), box_map())


def test_an_unasked_lesion_becomes_the_lobe_that_it_lies_in() -> None:
    ids = box_map()
    ids[28:31, 12:15, 12:15] = ID("lung tumor")
    assert np.array_equal(mend(ids), box_map())


@pytest.mark.parametrize("name", ["hepatic tumor", "bone lesion"])
def test_a_lesion_that_was_asked_for_is_kept_whole_however_small_and_in_however_many_pieces(name: str) -> None:
    ids = box_map()
    ids[8, 10, 10] = ids[12:14, 12:14, 12] = ID(name)
    assert np.array_equal(mend(ids, lesions=(name,)), ids)


def test_specks_become_what_lies_next_to_them_and_holes_are_filled() -> None:
    ids = box_map()
    ids[28, 12, 12] = ID("liver")  # a speck in the lung
    ids[20, 14, 14] = ID("liver")  # and in plain body
    ids[10, 12, 12] = ID("body")  # a hole in the liver
    ids[21, 5, 5] = 0  # one in the body
    assert np.array_equal(mend(ids), box_map())


def test_four_voxels_of_a_large_structure_are_none_of_it_but_may_be_all_of_a_small_one() -> None:
    ids = box_map()
    ids[20, 14, 4:8] = ID("left hip")  # 0.5 ml of 380
    ids[26, 12, 12] = ID("heart")
    assert np.array_equal(mend(ids), box_map())
    ids[20, 14, 4:9] = ID("left hip")  # five may be the end of one
    ids[26, 12, 12] = ID("right lung lower lobe")
    assert np.array_equal(mend(ids), ids)
    coarse = np.zeros((12, 10, 10), np.uint8)
    coarse[1:11, 1:9, 1:9] = ID("body")
    coarse[2:5, 2:8, 2:8] = ID("liver")
    coarse[6, 5, 5:7] = ID("gallbladder")  # 8 of 30 ml, on voxels of 16 mm
    labels = LabelMap(coarse, Grid.centered(coarse.shape, (16.0, 16.0, 16.0)))
    assert np.array_equal(mended(labels, VOCABULARY).array, coarse)


def test_pieces_of_what_is_parted_stay_unless_they_are_far_smaller() -> None:
    ids = box_map()
    ids[19:22, 6:10, 6:10] = ids[19:22, 16:20, 16:20] = ID("small bowel")
    expected = ids.copy()
    ids[22, 12, 12] = ID("small bowel")
    assert np.array_equal(mend(ids), expected)


def test_pieces_of_an_organ_that_the_border_cuts_may_meet_beyond_it() -> None:
    ids = box_map()
    ids[6:18, 8:22, 14:18] = ID("body")
    ids[6:18, 8:22, :10] = ids[6:18, 8:22, 22:] = ID("liver")
    assert np.array_equal(mend(ids[4:36, 4:26]), ids[4:36, 4:26])
    inside = np.pad(ids[4:36, 4:26], 2)
    assert ID("liver") not in mend(inside)[:, :, 20:]


def test_a_drawn_person_stays_as_it_is_but_for_shreds() -> None:
    for seed, region in enumerate(("head", "chest", "abdomen", "lower")):
        labels = draw_phantom(region, Grid.centered((48, 48, 48), (8.0, 8.0, 8.0)), np.random.default_rng(seed))
        assert (mend(labels.array) != labels.array).mean() < 0.002


def test_what_floats_beside_the_body_goes_and_an_arm_stays() -> None:
    ids = box_map()
    ids[1, 1, 1] = ID("body")
    ids[:3, 8:22, 8:22] = ID("body")  # 73 ml
    expected = ids.copy()
    expected[1, 1, 1] = 0
    assert np.array_equal(mend(ids), expected)


def test_a_structure_that_must_be_absent_becomes_its_surroundings() -> None:
    ids = box_map()
    ids[10:14, 12:16, 12:16] = ID("gallbladder")
    assert np.array_equal(mend(ids, absent=("gallbladder",)), box_map())


def test_an_empty_map_stays_empty() -> None:
    assert not mend(np.zeros((8, 8, 8), np.uint8)).any()
