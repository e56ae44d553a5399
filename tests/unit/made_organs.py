"""Simple bodies for tests of tumours: organs as balls and tubes in a block of soft tissue."""

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id


def body(
    organs: dict[str, tuple[tuple[float, float, float], float]],
    spacing: tuple[float, float, float] = (3.0, 3.0, 4.0),
    fov_mm: float = 132.0,
) -> LabelMap:
    """A block of body with balls of these middles and radii (mm) in it, on a grid centred on 0."""
    grid = Grid.centered([round(fov_mm / s) for s in spacing], spacing)
    points = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    array = np.full(grid.shape, ID("body"), np.uint8)
    for name, (middle, radius) in organs.items():
        array[((points - middle) ** 2).sum(axis=-1) <= radius**2] = ID(name)
    return LabelMap(array, grid)


def colon(spacing: tuple[float, float, float] = (2.5, 2.5, 2.5), bend_mm: float = 70.0) -> LabelMap:
    """A colon of 20 mm radius that runs along z and bends to x, in a block of body."""
    grid = Grid.centered([round(160 / s) for s in spacing], spacing)
    points = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    line = np.stack([bend_mm * (points[..., 2] / 100) ** 2, np.zeros(grid.shape)], axis=-1)
    array = np.full(grid.shape, ID("body"), np.uint8)
    array[((points[..., :2] - line) ** 2).sum(axis=-1) <= 20.0**2] = ID("colon")
    return LabelMap(array, grid)


def ml(labels: LabelMap, name: str) -> float:
    """The volume of a structure."""
    return float(np.count_nonzero(labels.array == ID(name)) * np.prod(labels.grid.spacing) / 1000)
