"""Copies among label maps."""

import numpy as np

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.evaluation.memorized_labels import _neighbour, mirrored
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

ID = load_vocabulary().id
GRID = Grid.centered((40, 40, 40), (8.0, 8.0, 8.0))


def of_one_side(name: str, x: slice, tall: int) -> LabelMap:
    ids = np.full(GRID.shape, ID("body"), np.uint8)
    ids[x, 12:20, 10 : 10 + tall] = ID(name)
    return LabelMap(ids, GRID)


def test_a_mirrored_copy_of_a_map_of_one_side_is_found_behind_others_of_that_side() -> None:
    learned = of_one_side("left femur", slice(6, 12), 24)
    others = {"another": of_one_side("right femur", slice(26, 34), 14), "original": learned}
    found = _neighbour("copy", mirrored(learned), [(name, Likeness.of(each)) for name, each in others.items()])
    assert (found.nearest, found.mirrored) == ("original", True)
    assert found.distance < 0.05
