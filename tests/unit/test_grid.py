"""Grids: where voxels lie, and which affines are refused."""

import numpy as np
import pytest

from maisi.errors import InvalidGridError, InvalidLabelsError, InvalidVolumeError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume, check_same_grid


def rotated(degrees: float, spacing: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(spacing)
    return affine


def test_a_centered_grid_has_the_middle_of_its_field_of_view_at_world_zero():
    grid = Grid.centered((4, 5, 6), (1.0, 2.0, 3.0))
    assert grid.fov_mm == (4.0, 10.0, 18.0)
    np.testing.assert_allclose(grid.corners().mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(grid.origin, (-1.5, -4.0, -7.5))
    assert grid.num_voxels == 120
    assert grid.is_ras


def test_spacing_is_read_off_the_affine_also_when_it_is_turned():
    grid = Grid((3, 4, 5), rotated(30, (0.7, 1.5, 4.0)))
    np.testing.assert_allclose(grid.spacing, (0.7, 1.5, 4.0))
    assert not grid.is_ras


def test_world_and_index_are_each_others_inverse():
    grid = Grid((8, 9, 10), rotated(20, (1, 2, 3)))
    points = np.random.default_rng(0).uniform(0, 8, (50, 3))
    np.testing.assert_allclose(grid.index(grid.world(points)), points, atol=1e-10)


def test_a_window_keeps_world_positions_and_may_begin_outside():
    grid = Grid.centered((8, 9, 10), (1.0, 2.0, 3.0))
    window = grid.window((-1, 2, 3), (4, 4, 4))
    np.testing.assert_allclose(window.world([1, 0, 0]), grid.world([0, 2, 3]))
    assert window.spacing == grid.spacing


def test_grids_are_close_when_no_corner_moves_by_more_than_a_tenth_of_a_voxel():
    grid = Grid.centered((50, 50, 50), (2.0, 2.0, 2.0))
    near, far = grid.affine.copy(), grid.affine.copy()
    near[0, 3] += 0.19
    far[:3, :3] *= 1.01  # half a millimetre in the far corner
    assert grid.is_close(Grid(grid.shape, near))
    assert not grid.is_close(Grid(grid.shape, far))
    assert not grid.is_close(Grid((50, 50, 49), grid.affine))


def test_equal_grids_have_equal_hashes_and_their_affine_cannot_be_changed():
    grid, same = Grid.centered((3, 4, 5), (1, 2, 3)), Grid.centered((3, 4, 5), (1, 2, 3))
    assert grid == same
    assert hash(grid) == hash(same)
    assert grid != Grid.centered((3, 4, 5), (1, 2, 3.5))
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "finite"),
        (np.eye(3), r"\(3, 3\)"),
    ],
)
def test_an_affine_that_loses_space_is_refused(affine, words):
    with pytest.raises(InvalidGridError, match=words):
        Grid((4, 4, 4), affine)


@pytest.mark.parametrize("shape", [(4, 4), (4, 0, 4), (4, 4, 2.5), (1, 2, 3, 4)])
def test_a_shape_that_is_not_three_positive_whole_numbers_is_refused(shape):
    with pytest.raises(InvalidGridError, match="three positive whole numbers"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -2, 1), (1, float("nan"), 1)])
def test_an_impossible_spacing_is_refused(spacing):
    with pytest.raises(InvalidGridError, match="millimetres"):
        Grid.centered((4, 4, 4), spacing)


def test_a_volume_must_fit_its_grid_and_lie_along_ras():
    grid = Grid.centered((4, 4, 4), (1, 1, 1))
    with pytest.raises(InvalidGridError, match="does not fit"):
        Volume(np.zeros((4, 4, 5), np.float32), grid)
    with pytest.raises(InvalidGridError, match="along RAS"):
        Volume(np.zeros((4, 4, 4), np.float32), Grid((4, 4, 4), rotated(10)))
    with pytest.raises(InvalidVolumeError, match="modality 'pet'"):
        Volume(np.zeros((4, 4, 4), np.float32), grid, "pet")
    assert Volume(np.zeros((4, 4, 4), np.int16), grid).array.dtype == np.float32


def test_a_label_map_holds_uint8_or_uint16_only():
    with pytest.raises(InvalidLabelsError, match="int64"):
        LabelMap(np.zeros((4, 4, 4), np.int64), Grid.centered((4, 4, 4), (1, 1, 1)))


def test_labels_off_the_grid_of_their_volume_are_refused_with_both_grids():
    grid = Grid.centered((4, 4, 4), (1, 1, 1))
    volume = Volume(np.zeros(grid.shape, np.float32), grid)
    check_same_grid(LabelMap(np.zeros(grid.shape, np.uint8), grid), volume)
    shifted = LabelMap(np.zeros(grid.shape, np.uint8), grid.window((1, 0, 0), grid.shape))
    with pytest.raises(InvalidLabelsError) as error:
        check_same_grid(shifted, volume)
    assert str(shifted.grid) in str(error.value)
    assert str(grid) in str(error.value)
