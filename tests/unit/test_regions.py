"""Body regions by name and from what a label map shows."""

import numpy as np
import pytest

from maisi.anatomy.regions import BodyRegion, RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap


def showing(*names: str) -> LabelMap:
    ids = [load_vocabulary().id(name) for name in names]
    array = np.zeros((4, 4, 4), np.uint8)
    array.ravel()[: len(ids)] = ids
    return LabelMap(array, Grid.centered((4, 4, 4), (2, 2, 2)))


def test_the_span_runs_from_the_first_marker_to_the_last() -> None:
    assert region_span(showing("right lung upper lobe", "liver")) == RegionSpan(BodyRegion.CHEST, BodyRegion.ABDOMEN)
    assert region_span(showing("brain", "left femur")) == RegionSpan(BodyRegion.HEAD, BodyRegion.LOWER)


def test_markers_outvote_what_merely_lies_nearby() -> None:
    assert region_span(showing("thyroid gland", "bladder", "left kidney")) == RegionSpan.named("abdomen")


def test_without_a_marker_any_other_structure_tells() -> None:
    assert region_span(showing("vertebrae L3", "body")) == RegionSpan.named("abdomen")
    assert region_span(showing("larynx", "sternum")) == RegionSpan(BodyRegion.HEAD, BodyRegion.CHEST)


@pytest.mark.parametrize("names", [(), ("body", "fat", "air"), ("soft-tissue sarcoma", "skeleton")])
def test_labels_that_tell_nothing_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidLabelsError, match="tell no body region"):
        region_span(showing(*names))


def test_one_hots_follow_the_order_head_chest_abdomen_lower() -> None:
    top, bottom = RegionSpan.named("chest", "pelvis").one_hots()
    assert top.tolist() == [0, 1, 0, 0]
    assert bottom.tolist() == [0, 0, 0, 1]
    assert top.dtype == np.float32


@pytest.mark.parametrize(("alias", "region"), [("Thorax", "CHEST"), ("head-neck", "HEAD"), ("limbs", "LOWER")])
def test_regions_have_aliases(alias: str, region: str) -> None:
    assert BodyRegion.named(alias) is BodyRegion[region]


def test_an_unknown_region_and_a_reversed_span_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="did you mean 'chest'"):
        BodyRegion.named("chets")
    with pytest.raises(InvalidRequestError, match="swap them"):
        RegionSpan.named("abdomen", "head")
