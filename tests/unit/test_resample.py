"""Content on another grid: values, positions, antialiasing, edges."""

import time

import numpy as np
import pytest
from scipy import ndimage

from maisi.errors import InvalidGridError
from maisi.space.grid import Grid
from maisi.space.resample import crop, fit, pad, resample, with_spacing
from maisi.space.volume import LabelMap, Volume


def ramp(shape=(12, 10, 8), spacing=(1.0, 2.0, 3.0)) -> Volume:
    """A volume whose value is a linear function of the world position."""
    grid = Grid.centered(shape, spacing)
    world = grid.world(np.stack(np.indices(shape), -1))
    return Volume((world @ [3.0, -2.0, 5.0] + 40).astype(np.float32), grid)


def test_a_linear_function_of_position_stays_itself_on_a_finer_grid():
    volume = ramp()
    fine = resample(volume, with_spacing(volume.grid, (0.5, 0.5, 0.5)))
    inside = tuple(slice(4, -8) for _ in range(3))  # beyond the last centres an edge is repeated, not continued
    world = fine.grid.world(np.stack(np.indices(fine.grid.shape), -1))
    np.testing.assert_allclose(fine.array[inside], (world @ [3.0, -2.0, 5.0] + 40)[inside], atol=1e-3)


def test_going_down_agrees_with_a_gaussian_of_half_the_excess_then_linear_interpolation():
    array = np.random.default_rng(0).normal(0, 300, (40, 36, 30)).astype(np.float32)
    volume = Volume(array, Grid.centered(array.shape, (1.0, 1.0, 1.0)))
    target = with_spacing(volume.grid, (2.5, 2.0, 3.0))
    smooth = ndimage.gaussian_filter(array.astype(np.float64), [0.75, 0.5, 1.0], mode="nearest", truncate=4.0)
    where = volume.grid.index(target.world(np.stack(np.indices(target.shape), -1)))
    expected = ndimage.map_coordinates(smooth, np.moveaxis(where, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(resample(volume, target).array, expected, atol=1e-2)


def test_stripes_finer_than_the_new_voxels_fade_and_do_not_alias():
    stripes = np.where(np.arange(64) % 2, 1000.0, -1000.0).astype(np.float32)
    volume = Volume(np.broadcast_to(stripes[:, None, None], (64, 4, 4)).copy(), Grid.centered((64, 4, 4), (1, 1, 1)))
    coarse = resample(volume, with_spacing(volume.grid, (3.0, 1.0, 1.0)))
    assert np.abs(coarse.array[2:-2]).max() < 50


def test_labels_take_the_nearest_id():
    labels = LabelMap(
        np.repeat(np.arange(8, dtype=np.uint8) * 30, 64).reshape(8, 8, 8), Grid.centered((8, 8, 8), (2, 2, 2))
    )
    fine = resample(labels, with_spacing(labels.grid, (1, 1, 1)))
    np.testing.assert_array_equal(fine.array[:, 0, 0], np.repeat(np.arange(8) * 30, 2))
    assert fine.array.dtype == np.uint8


def test_outside_the_field_of_view_is_air_or_background():
    volume = Volume(np.full((4, 4, 4), 50, np.float32), Grid.centered((4, 4, 4), (2, 2, 2)))
    labels = LabelMap(np.full((4, 4, 4), 7, np.uint16), volume.grid)
    wide = Grid.centered((12, 12, 12), (1, 1, 1))
    inside = np.zeros(wide.shape, bool)
    inside[2:10, 2:10, 2:10] = True
    np.testing.assert_allclose(resample(volume, wide).array, np.where(inside, 50, -1024), atol=1e-4)
    np.testing.assert_array_equal(resample(labels, wide).array, np.where(inside, 7, 0))
    mr = resample(Volume(volume.array, volume.grid, "mr"), wide)
    assert mr.array[0, 0, 0] == 0
    assert mr.modality == "mr"


def test_a_shift_by_whole_voxels_copies_them_exactly():
    volume = ramp()
    window = volume.grid.window((2, -1, 3), (6, 6, 4))
    moved = resample(volume, window)
    np.testing.assert_array_equal(moved.array[:, 1:, :], volume.array[2:8, 0:5, 3:7])
    assert (moved.array[:, 0, :] == -1024).all()


def test_a_new_spacing_keeps_the_field_of_view():
    grid = Grid.centered((240, 184, 133), (1.5, 1.5, 2.5))
    coarse = with_spacing(grid, (3, 3, 5))
    assert coarse.spacing == (3, 3, 5)
    np.testing.assert_allclose(coarse.fov_mm, grid.fov_mm, atol=2.5)
    np.testing.assert_allclose(coarse.corners().mean(0), grid.corners().mean(0), atol=1e-9)
    with pytest.raises(InvalidGridError, match="millimetres"):
        with_spacing(grid, (0, 1, 1))


def test_fit_keeps_the_centre():
    volume = ramp((12, 10, 8))
    fitted = fit(volume, (8, 14, 8))
    np.testing.assert_array_equal(fitted.array[:, 2:12, :], volume.array[2:10])
    assert (fitted.array[:, :2] == -1024).all()
    np.testing.assert_allclose(fitted.grid.world([0, 2, 0]), volume.grid.world([2, 0, 0]))
    assert fit(volume, (5, 5, 5)).grid.shape == (5, 5, 5)


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (13, 2, 2)), ((-1, 0, 0), (2, 2, 2)), ((3, 3, 3), (3, 4, 4))])
def test_a_crop_that_reaches_outside_or_is_empty_is_refused(start, stop):
    with pytest.raises(InvalidGridError, match="start < stop"):
        crop(ramp(), start, stop)


def test_a_negative_pad_and_an_impossible_fit_are_refused():
    with pytest.raises(InvalidGridError, match="accepted: three numbers >= 0"):
        pad(ramp(), (0, 0, -1), (0, 0, 0))
    with pytest.raises(InvalidGridError, match="positive whole"):
        fit(ramp(), (4, 0, 4))


def test_an_oblique_target_is_refused():
    affine = np.eye(4)
    affine[0, 1] = 0.2
    with pytest.raises(InvalidGridError, match="along RAS"):
        resample(ramp(), Grid((4, 4, 4), affine))


def test_a_torso_resamples_in_under_two_seconds_up_and_down():
    volume = Volume(np.zeros((240, 184, 133), np.float32), Grid.centered((240, 184, 133), (1.5, 1.5, 2.5)))
    for spacing in ((4.0, 4.0, 4.0), (1.2, 1.2, 1.2)):
        start = time.perf_counter()
        resample(volume, with_spacing(volume.grid, spacing))
        assert time.perf_counter() - start < 2
