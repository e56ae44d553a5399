"""Agreement of label maps: shapes whose answer is known, the reference implementation, and what says nothing."""

import numpy as np
import pytest

from maisi.errors import InvalidLabelsError, InvalidRequestError
from maisi.evaluation.segmentation import (
    agreement,
    dice,
    dice_intervals,
    interval,
    known_agreement,
    surface_distances,
)
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap


def ball(middle: tuple[float, float, float], radius_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    at = np.indices((24, 20, 16)).reshape(3, -1).T * np.array(spacing)
    return (np.linalg.norm(at - np.array(middle) * spacing, axis=1) <= radius_mm).reshape(24, 20, 16)


def labelled(*masks: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> LabelMap:
    array = np.zeros(masks[0].shape, np.uint8)
    for id, mask in enumerate(masks, start=1):
        array[mask] = id
    return LabelMap(array, Grid.centered(array.shape, spacing))


def test_a_shifted_slab_has_the_distance_that_it_was_shifted_by() -> None:
    a, b = np.zeros((2, 12, 10, 8), bool)
    a[3:7], b[5:9] = True, True
    found = agreement(labelled(a, spacing=(2.0, 1.0, 1.0)), labelled(b, spacing=(2.0, 1.0, 1.0)), {"slab": [1]}, 1.0)
    assert found["slab"].dice == pytest.approx(0.5)
    assert found["slab"].hd95_mm == pytest.approx(4.0)
    assert found["slab"].reference_ml == pytest.approx(4 * 10 * 8 * 2 / 1000)


def test_a_map_agrees_with_itself_and_not_with_another_place() -> None:
    a, b = ball((6, 6, 6), 4, (1, 1, 1)), ball((17, 13, 9), 4, (1, 1, 1))
    same = agreement(labelled(a), labelled(a), {"ball": [1]})["ball"]
    assert (same.dice, same.surface_dice, same.hd95_mm) == (1.0, 1.0, 0.0)
    apart = agreement(labelled(a), labelled(b), {"ball": [1]})["ball"]
    assert (apart.dice, apart.surface_dice) == (0.0, 0.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 2.0, 3.0)])
def test_distances_are_those_of_the_reference(spacing: tuple[float, float, float]) -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    a, b = ball((10, 9, 7), 6 * spacing[0], spacing), ball((12, 10, 8), 5 * spacing[0], spacing)
    found = agreement(labelled(a, spacing=spacing), labelled(b, spacing=spacing), {"ball": [1]}, 2.0)["ball"]
    x, y = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (b, a))
    hd95 = metrics.compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=spacing)
    surface = metrics.compute_surface_dice(x, y, [2.0], include_background=True, spacing=spacing)
    overlap = metrics.compute_dice(x, y, include_background=True)
    assert found.hd95_mm == pytest.approx(float(hd95), abs=1e-4)
    assert found.surface_dice == pytest.approx(float(surface), abs=1e-6)
    assert found.dice == pytest.approx(float(overlap), abs=1e-6)


def test_what_is_not_there_says_nothing() -> None:
    empty, a = np.zeros((24, 20, 16), bool), ball((6, 6, 6), 4, (1, 1, 1))
    found = agreement(labelled(a), labelled(empty), {"ball": [1], "nothing": [9]})
    assert (found["ball"].dice, found["ball"].hd95_mm) == (0.0, None)
    assert found["nothing"].dice is None
    assert dice(empty, empty) is None
    assert surface_distances(a, empty, (1, 1, 1)) is None
    assert list(dice_intervals([found], np.random.default_rng(0))) == ["ball"]


def test_several_ids_are_one_structure() -> None:
    a, b = ball((6, 6, 6), 3, (1, 1, 1)), ball((17, 13, 9), 3, (1, 1, 1))
    found = agreement(labelled(a, b), labelled(b, a), {"both": [1, 2], "first": [1]})
    assert (found["both"].dice, found["first"].dice) == (1.0, 0.0)


def test_what_is_not_known_does_not_count() -> None:
    """Id 1 is class 1, id 2 may be either class, 0 is neither."""
    admissible = np.zeros((256, 3), bool)
    admissible[0, 0] = admissible[1, 1] = admissible[2, 1] = admissible[2, 2] = True
    a, b = np.zeros((2, 12, 10, 8), bool)
    a[:3], b[3:6] = True, True
    reference, channels = labelled(a, b), labelled(a | b)
    found = known_agreement(reference, channels, admissible, ("first", "second"))
    assert list(found) == ["first"]
    assert found["first"].dice == 1.0


def test_maps_on_different_grids_are_refused() -> None:
    a = ball((6, 6, 6), 4, (1, 1, 1))
    with pytest.raises(InvalidLabelsError, match="different grids"):
        agreement(labelled(a), labelled(a, spacing=(2.0, 1.0, 1.0)), {"ball": [1]})
    with pytest.raises(InvalidRequestError, match="below zero"):
        agreement(labelled(a), labelled(a), {"ball": [1]}, -1.0)


def test_an_interval_holds_the_mean_and_shrinks_with_cases() -> None:
    rng = np.random.default_rng(1)
    few, many = (interval(rng.normal(0.8, 0.1, n).tolist(), np.random.default_rng(2)) for n in (8, 200))
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    assert interval([0.7], rng).low == interval([0.7], rng).high == pytest.approx(0.7)
    with pytest.raises(InvalidRequestError, match="no case"):
        interval([], rng)
