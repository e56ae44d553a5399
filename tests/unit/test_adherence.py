import numpy as np
import pytest

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.evaluation.adherence import adherence, dice
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

GRID = Grid.centered((24, 24, 24), (4.0, 4.0, 4.0))


def person() -> tuple[Volume, LabelMap]:
    vocabulary = load_vocabulary()
    ids = np.zeros(GRID.shape, np.uint8)
    ids[4:20, 4:20, :] = vocabulary.id("body")
    ids[6:10, 8:14, :] = vocabulary.id("left lung upper lobe")
    ids[11:14, 5:8, :] = vocabulary.id("vertebrae T8")
    hu = np.full(GRID.shape, -1000.0, np.float32)
    hu[ids > 0] = 40.0
    hu[ids == vocabulary.id("left lung upper lobe")] = -800.0
    bone = ids == vocabulary.id("vertebrae T8")
    hu[bone] = np.random.default_rng(0).uniform(300, 900, int(bone.sum()))  # mottled: what is even is contrast medium
    return Volume(hu, GRID), LabelMap(ids, GRID)


def test_a_volume_that_shows_its_labels_scores_one() -> None:
    found = adherence(*person())
    assert found.body == found.bones == found.skeleton == found.lungs == found.outside == 1.0


def test_a_volume_of_air_shows_no_body_and_no_bone() -> None:
    volume, labels = person()
    found = adherence(Volume(np.full_like(volume.array, -1000.0), GRID), labels)
    assert found.bones == found.skeleton == 0.0
    assert found.body is not None
    assert found.body < 0.3
    assert found.outside is not None
    assert found.outside < 1.0


def test_contrast_medium_where_the_map_names_a_vessel_is_no_bone_and_elsewhere_is() -> None:
    volume, labels = person()
    hu, ids = volume.array.copy(), labels.array.copy()
    hu[16:18, 14:16, :] = 350.0
    assert adherence(Volume(hu, GRID), labels).bones == pytest.approx(2 * 9 / (2 * 9 + 4))
    ids[16:18, 14:16, :] = load_vocabulary().id("aorta")
    assert adherence(Volume(hu, GRID), LabelMap(ids, GRID)).bones == 1.0


def test_a_class_that_the_map_lacks_is_not_scored() -> None:
    volume, labels = person()
    ids = np.where(labels.array > 0, load_vocabulary().id("body"), 0).astype(np.uint8)
    assert adherence(volume, LabelMap(ids, GRID)).lungs is None


def test_a_volume_on_another_grid_is_refused() -> None:
    volume, labels = person()
    other = LabelMap(labels.array, Grid.centered(GRID.shape, (3.0, 3.0, 3.0)))
    with pytest.raises(InvalidLabelsError, match="grid"):
        adherence(volume, other)


def test_dice_of_half_overlap_is_two_thirds() -> None:
    a = np.array([True, True, False, False])
    assert dice(a, np.array([True, False, False, False])) == pytest.approx(2 / 3)
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 1.0
