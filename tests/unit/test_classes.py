"""Classes of a segmentation network: structures renumbered from 1 without gaps."""

import numpy as np
import pytest

from maisi.anatomy.classes import Classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap


def label_map(*names: str) -> LabelMap:
    ids = [load_vocabulary().id(name) if name else 0 for name in names]
    return LabelMap(np.array(ids, np.uint8).reshape(-1, 1, 1), Grid.centered((len(ids), 1, 1), (1, 1, 1)))


def test_structures_and_groups_are_numbered_in_their_order_and_the_rest_is_background() -> None:
    classes = Classes.of(["spleen", "lungs", "hepatic tumor"])
    labels = label_map("", "liver", "left lung upper lobe", "right lung lower lobe", "spleen", "hepatic tumor")
    assert classes.renumbered(labels).array.ravel().tolist() == [0, 0, 2, 2, 1, 3]
    assert classes.numbers == {"background": 0, "spleen": 1, "lungs": 2, "hepatic tumor": 3}


def test_names_of_other_vocabularies_are_taken_and_called_as_ours() -> None:
    assert Classes.of(["kidney_right"]).names == ("right kidney",)


def test_a_class_for_each_structure_that_is_there() -> None:
    vocabulary = load_vocabulary()
    classes = Classes.present([vocabulary.id("liver"), vocabulary.id("body")])
    assert classes.numbers == {"background": 0, "liver": 1, "body": 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class is named"),
        (["livre"], "did you mean 'liver'"),
        (["lungs", "left lung upper lobe"], "left lung upper lobe would be of two classes, lungs and left lung upper"),
        (["liver", "liver"], "liver would be of two classes"),
    ],
)
def test_classes_that_cannot_be_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        Classes.of(names)
