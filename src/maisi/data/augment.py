"""Variations of a case: another spacing, another part of the field of view."""

from collections.abc import Sequence

import numpy as np

from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume


def vary_grid(
    grid: Grid, rng: np.random.Generator, spacing_mm: tuple[float, float], max_size: Sequence[int], multiple: int
) -> Grid:
    """A grid over a random part of `grid` at a random spacing (mm), of at most `max_size` voxels.

    Its size is a multiple of `multiple` on every axis. In-plane spacing is the same on both axes. A spacing finer than
    three quarters of the scan's own is never drawn: it would show interpolation, not anatomy. An axis that is covered
    whole is centred.
    """
    low, high = spacing_mm
    in_plane = _between(max(low, 0.75 * max(grid.spacing[:2])), high, rng)
    through = _between(max(low, 0.75 * grid.spacing[2]), high, rng)
    fine = with_spacing(grid, (in_plane, in_plane, through))
    size: list[int] = []
    start: list[int] = []
    for n, most in zip(fine.shape, max_size, strict=True):
        wanted = -(-n // multiple) * multiple
        most = most // multiple * multiple
        size.append(min(wanted, most))
        start.append((n - wanted) // 2 if wanted <= most else int(rng.integers(0, n - most + 1)))
    return fine.window(start, size)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(min(low, high), high))


def on_grid(volume: Volume, labels: LabelMap, grid: Grid) -> tuple[Volume, LabelMap]:
    """Both on another grid: the volume antialiased and linear, the labels nearest."""
    return resample(volume, grid), resample(labels, grid)
