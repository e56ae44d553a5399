"""Stacks whose planes shift sideways (a gantry tilt, a shear) come out upright, each value where it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.space.grid import Grid
from maisi.space.orientation import turn_to_ras
from maisi.space.tilt import Tilt, straighten, tilt_of, upright

SPACING = (2.0, 2.5, 5.0)
SHAPE = (24, 26, 12)


def tilted(degrees: float, toward: int = 1, shape=SHAPE) -> Grid:
    """Axial planes 5 mm apart that shift along the world's x or y."""
    affine = np.diag([*SPACING, 1.0])
    affine[toward, 2] = SPACING[2] * np.tan(np.radians(degrees))
    affine[:3, 3] = (-20.0, -30.0, 40.0)
    return Grid(shape, affine)


def under_a_gantry(degrees: float) -> Grid:
    """What a scanner with a tilted gantry writes: planes turned about x, positions that move along the table alone."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (2.0, 0, 0), (0, 2.5 * c, -2.5 * s), (0, 0, 5.0)
    return Grid(SHAPE, affine)


def plane_in_world(grid: Grid) -> np.ndarray:
    """Values that are linear in the world, which linear interpolation keeps exactly."""
    world = grid.world(np.stack(np.indices(grid.shape), -1))
    return (world @ (3.0, -2.0, 1.5)).astype(np.float32)


def inside(source: Grid, target: Grid, margin: float = 0.0) -> np.ndarray:
    index = source.index(target.world(np.stack(np.indices(target.shape), -1)))
    return ((index >= margin) & (index <= np.array(source.shape) - 1 - margin)).all(-1)


@pytest.mark.parametrize("degrees", [5.0, 20.0, -17.5])
@pytest.mark.parametrize("toward", [0, 1])
def test_planes_that_shift_within_themselves_keep_their_number_and_their_distance(degrees, toward):
    source = tilted(degrees, toward)
    array, grid = turn_to_ras(plane_in_world(source), source, -1024.0, nearest=False)
    assert grid.is_ras
    assert grid.shape[2] == SHAPE[2]
    np.testing.assert_allclose(grid.spacing, SPACING)
    within = inside(source, grid)
    assert within.sum() > 0.9 * (np.array(SHAPE) - 1).prod()
    np.testing.assert_allclose(array[within], plane_in_world(grid)[within], atol=1e-3)


def test_a_scan_under_a_tilted_gantry_lies_where_it_was_at_the_distance_of_its_planes():
    source = under_a_gantry(20)
    array, grid = turn_to_ras(plane_in_world(source), source, -1024.0, nearest=False)
    np.testing.assert_allclose(grid.spacing, (2.0, 2.5, 5.0 * np.cos(np.radians(20))))
    within = inside(source, grid)
    assert within.sum() > 1000
    np.testing.assert_allclose(array[within], plane_in_world(grid)[within], atol=1e-3)


def test_what_was_not_scanned_is_outside_and_nothing_beside_it_is_mixed_with_it():
    source = tilted(20)
    array, grid = straighten(np.full(SHAPE, 40.0, np.float32), source, -1024.0, nearest=False)
    assert set(np.unique(array)) == {-1024.0, 40.0}
    index = source.index(grid.world(np.stack(np.indices(grid.shape), -1)))
    assert (array[((index < -0.51) | (index > np.array(SHAPE) - 0.49)).any(-1)] == -1024).all()


def test_ids_take_the_nearest_voxel_and_a_ball_keeps_its_place_and_its_volume():
    source = tilted(20, shape=(40, 40, 20))
    centre = source.world((np.array(source.shape) - 1) / 2)
    world = source.world(np.stack(np.indices(source.shape), -1))
    ball = (np.linalg.norm(world - centre, axis=-1) < 20).astype(np.uint8)
    array, grid = turn_to_ras(ball, source, 0, nearest=True)
    assert array.dtype == np.uint8
    assert set(np.unique(array)) == {0, 1}
    np.testing.assert_allclose(grid.world(np.argwhere(array).mean(0)), centre, atol=0.5)
    num_voxels = 4 / 3 * np.pi * 20**3 / np.prod(grid.spacing)
    assert abs(array.sum() / num_voxels - 1) < 0.03


def test_a_tilt_is_told_by_its_axis_angle_and_distance():
    assert tilt_of(tilted(20)) == Tilt(2, pytest.approx(20), pytest.approx(5.0))
    tilt = tilt_of(under_a_gantry(20))
    assert tilt == Tilt(2, pytest.approx(20), pytest.approx(5.0 * np.cos(np.radians(20))))
    assert tilt_of(tilted(0)) is None
    assert tilt_of(tilted(0.05)) is None  # 0.05 mm over the whole stack


def test_an_oblique_grid_is_not_tilted():
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(SPACING)
    assert tilt_of(Grid(SHAPE, affine)) is None
    np.testing.assert_allclose(upright(Grid(SHAPE, affine)).spacing, SPACING)


@settings(max_examples=25, deadline=None)
@given(
    degrees=st.floats(3, 35) | st.floats(-35, -3),
    toward=st.sampled_from([0, 1]),
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_any_order_and_direction_of_the_axes_gives_one_answer(degrees, toward, order, flips):
    source = tilted(degrees, toward, shape=(9, 8, 7))
    expected, grid = turn_to_ras(plane_in_world(source), source, -1024.0, nearest=False)
    affine = source.affine.copy()
    array = plane_in_world(source)
    for axis in np.flatnonzero(flips):
        array = np.flip(array, axis)
        affine[:3, 3] += affine[:3, axis] * (source.shape[axis] - 1)
        affine[:3, axis] *= -1
    array, affine = array.transpose(order), affine[:, [*order, 3]]
    turned, turned_grid = straighten(array, Grid(array.shape, affine), -1024.0, nearest=False)
    again, again_grid = turn_to_ras(array, Grid(array.shape, affine), -1024.0, nearest=False)
    assert again_grid.is_close(grid)
    np.testing.assert_allclose(again, expected, atol=1e-3)
    assert turned_grid.is_close(grid)
    np.testing.assert_allclose(turned, expected, atol=1e-3)
