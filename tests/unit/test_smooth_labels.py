"""Label maps on finer grids with rounded borders."""

import numpy as np

from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.smooth_labels import resample_smoothly
from maisi.space.volume import LabelMap


def ball(spacing: float, radius_mm: float = 20.0, size_mm: float = 60.0) -> LabelMap:
    n = round(size_mm / spacing)
    grid = Grid.centered((n, n, n), (spacing,) * 3)
    distance = np.linalg.norm(grid.world(np.stack(np.indices(grid.shape), -1)), axis=-1)
    return LabelMap(np.where(distance < radius_mm, 3, np.where(distance < radius_mm + 4, 7, 0)).astype(np.uint8), grid)


def test_a_coarse_ball_comes_nearer_to_the_true_one_than_by_nearest_voxels() -> None:
    coarse, true = ball(4.0), ball(1.0)
    errors = [(f(coarse, true.grid).array != true.array).mean() for f in (resample_smoothly, resample)]
    assert errors[0] < 0.8 * errors[1]


def test_the_same_grid_and_a_coarser_one_are_those_of_the_nearest_voxel() -> None:
    labels = ball(2.0)
    for grid in (labels.grid, with_spacing(labels.grid, (3.0, 1.0, 1.0))):
        assert np.array_equal(resample_smoothly(labels, grid).array, resample(labels, grid).array)


def test_beyond_the_field_of_view_there_is_nothing_and_ids_are_those_of_the_map() -> None:
    labels = LabelMap(np.full((4, 5, 6), 9, np.uint8), Grid.centered((4, 5, 6), (3.0, 3.0, 3.0)))
    wide = resample_smoothly(labels, Grid.centered((10, 12, 14), (2.0, 2.0, 2.0)))
    assert set(np.unique(wide.array)) == {0, 9}
    assert np.array_equal(wide.array, resample(labels, wide.grid).array)
