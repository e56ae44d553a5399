"""Structures brought to volumes: measured, connected, by what they may displace."""

import numpy as np
import pytest

from maisi.anatomy.fulfil import fulfil
from maisi.anatomy.morphology import parts
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.resize import is_cut, mask_of, removed, resized, volume_ml
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidAnatomyError
from maisi.phantom.draw import draw_phantom
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

V = load_vocabulary()
BODY, LIVER, SPLEEN, KIDNEY, TUMOUR = (V.id(n) for n in ("body", "liver", "spleen", "right kidney", "hepatic tumor"))


@pytest.fixture(scope="module")
def abdomen() -> LabelMap:
    return draw_phantom("abdomen", Grid.centered((64, 48, 52), (6, 6, 6)), np.random.default_rng(1))


def a_bar(spacing: float = 2.0) -> LabelMap:
    """A body with an organ of two lumps that a thin bar joins, and bone beside it."""
    ids = np.zeros((60, 40, 40), np.uint8)
    ids[2:-2, 2:-2, 2:-2] = BODY
    ids[12:20, 14:26, 14:26] = SPLEEN
    ids[40:48, 14:26, 14:26] = SPLEEN
    ids[20:40, 19:21, 19:21] = SPLEEN
    ids[12:20, 26:28, 14:26] = V.id("left rib 9")
    return LabelMap(ids, Grid.centered(ids.shape, (spacing,) * 3))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("name", ["liver", "spleen", "pancreas", "stomach", "left kidney"])
def test_an_organ_gets_the_volume_asked_for_and_stays_in_one_piece(abdomen: LabelMap, name: str, factor: float) -> None:
    id = V.id(name)
    before = mask_of(abdomen, id, V)
    after = resized(abdomen, id, factor * volume_ml(before, abdomen), V)
    mask = mask_of(after, id, V)
    assert volume_ml(mask, after) == pytest.approx(factor * volume_ml(before, abdomen), rel=0.05)
    assert len(parts(mask)[1]) <= len(parts(before)[1])
    changed = after.array != abdomen.array
    assert not np.isin(abdomen.array[changed], [*V.group("bones"), 0]).any()
    assert (np.unique(after.array) == np.unique(abdomen.array)).all()


def test_what_shrinks_does_not_come_apart_where_it_is_thin() -> None:
    labels = a_bar()
    before = mask_of(labels, SPLEEN, V)
    after = resized(labels, SPLEEN, 0.4 * volume_ml(before, labels), V)
    mask = mask_of(after, SPLEEN, V)
    assert len(parts(mask)[1]) == 2  # the rest, and one piece
    assert mask[13:19].any()
    assert mask[41:47].any()
    assert not (mask & ~before).any()


def test_a_neighbour_gives_no_more_than_its_share_and_bone_nothing() -> None:
    labels = a_bar()
    ids = labels.array.copy()
    ids[2:12, 2:-2, 2:-2] = LIVER
    labels = LabelMap(ids, labels.grid)
    after = resized(labels, SPLEEN, 4 * volume_ml(ids == SPLEEN, labels), V)
    assert 0.85 <= (after.array == LIVER).sum() / (ids == LIVER).sum() < 1
    np.testing.assert_array_equal(after.array == V.id("left rib 9"), ids == V.id("left rib 9"))
    np.testing.assert_array_equal(after.array == 0, ids == 0)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    labels = a_bar()
    with pytest.raises(InvalidAnatomyError, match=r"spleen of 900 ml does not fit.*up to about"):
        resized(labels, SPLEEN, 900, V)
    with pytest.raises(InvalidAnatomyError, match=r"is 1\.25 voxels of 2 x 2 x 2 mm"):
        resized(labels, SPLEEN, 0.01, V)


def test_a_structure_that_the_border_cuts_has_no_size() -> None:
    labels = a_bar()
    half = LabelMap(labels.array[16:], Grid.centered((44, 40, 40), (2, 2, 2)))
    assert is_cut(half.array == SPLEEN, half)
    assert not is_cut(labels.array == SPLEEN, labels)
    with pytest.raises(InvalidAnatomyError, match="cuts the spleen"):
        resized(half, SPLEEN, 10, V)


def test_what_is_removed_becomes_what_surrounds_it() -> None:
    labels = a_bar()
    after = removed(labels, SPLEEN, V)
    assert (after.array[labels.array == SPLEEN] == BODY).all()
    np.testing.assert_array_equal(after.array[labels.array != SPLEEN], labels.array[labels.array != SPLEEN])


def test_what_is_asked_for_is_there_and_no_lesion_that_was_not(abdomen: LabelMap) -> None:
    ids = abdomen.array.copy()
    cyst, kidney = V.id("right kidney cyst"), np.flatnonzero(ids == KIDNEY)
    ids.reshape(-1)[kidney[: len(kidney) // 4]] = cyst
    request = AnatomyRequest.parse(["liver=0.7", "spleen=150ml", "hepatic tumor=30ml", "gallbladder=none"])
    found = fulfil(LabelMap(ids, abdomen.grid), request, np.random.default_rng(0))
    array = found.labels.array
    assert not (array == cyst).any()
    assert (array == KIDNEY).sum() == len(kidney)
    assert not (array == V.id("gallbladder")).any()
    assert found.obtained[TUMOUR] == pytest.approx(30, rel=0.1)
    assert found.obtained[SPLEEN] == pytest.approx(150, rel=0.05)
    whole = volume_ml(np.isin(array, [LIVER, TUMOUR, V.id("hepatic vessel")]), found.labels)
    assert whole == pytest.approx(found.asked[LIVER], rel=0.05)


@pytest.mark.parametrize("diameter", range(5, 13))
def test_a_lesion_of_few_voxels_is_as_large_as_voxels_can_be(abdomen: LabelMap, diameter: int) -> None:
    request = AnatomyRequest.parse([f"hepatic tumor={diameter}mm"])
    found = fulfil(abdomen, request, np.random.default_rng(0))
    voxel = float(np.prod(abdomen.grid.spacing)) / 1000
    asked = found.asked[TUMOUR]
    assert abs(found.obtained[TUMOUR] - asked) <= max(0.1 * asked, voxel)


def test_a_lesion_of_any_size_stays_where_the_map_has_one(abdomen: LabelMap) -> None:
    ids = abdomen.array.copy()
    liver = np.flatnonzero(ids == LIVER)
    ids.reshape(-1)[liver[:200]] = TUMOUR
    request = AnatomyRequest.parse(["hepatic tumor=any"])
    found = fulfil(LabelMap(ids, abdomen.grid), request, np.random.default_rng(0))
    np.testing.assert_array_equal(found.labels.array, ids)


def test_a_map_without_the_organ_is_refused(abdomen: LabelMap) -> None:
    with pytest.raises(InvalidAnatomyError, match="has no brain"):
        fulfil(abdomen, AnatomyRequest.parse(["brain=any"]), np.random.default_rng(0))


def test_a_lesion_of_any_size_is_planted_where_the_map_has_none(abdomen: LabelMap) -> None:
    found = fulfil(abdomen, AnatomyRequest.parse(["liver cancer=any"]), np.random.default_rng(0))
    assert found.obtained[TUMOUR] > 0
    assert found.asked == {}


def test_a_tumour_without_room_is_told_as_anatomy_that_cannot_be(abdomen: LabelMap) -> None:
    with pytest.raises(InvalidAnatomyError, match=r"hepatic tumor .* is larger than its organ"):
        fulfil(abdomen, AnatomyRequest.parse(["hepatic tumor=2500ml"]), np.random.default_rng(0))
