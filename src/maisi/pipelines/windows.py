"""The part of a CT that is generated anew around a lesion, on a grid that the networks of a bundle take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maisi.anatomy.morphology import parts
from maisi.bundle.bundle import Limits
from maisi.errors import InvalidGridError
from maisi.shapes import Size3, Spacing3, in_words
from maisi.space.grid import EDGE, Grid
from maisi.space.resample import with_spacing

CONTEXT_MM = 40.0
"""How far the networks see beyond a lesion on each side."""

NEAR_MM = 24.0
"""How far beyond a lesion the CT is compared with what was drawn."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Window:
    """One lesion, or some that lie together, and where they are drawn."""

    grid: Grid  # what is generated
    outer: Box  # of the CT's voxels: what the grid shows of it
    box: Box  # of the CT's voxels: what is compared with what was drawn, and may change
    mask: np.ndarray  # bool, of the CT's voxels in `outer`

    def inner(self, array: np.ndarray) -> np.ndarray:
        """The part in `box` of an array of `outer`."""
        start = self._start
        return array[tuple(slice(a, a + b.stop - b.start) for a, b in zip(start, self.box, strict=True))]

    def inner_grid(self, outer: Grid) -> Grid:
        """The grid of `box`, given that of `outer`."""
        return outer.window(self._start, [part.stop - part.start for part in self.box])

    @property
    def _start(self) -> list[int]:
        return [own.start - around.start for own, around in zip(self.box, self.outer, strict=True)]


def windows_of(
    mask: np.ndarray, grid: Grid, limits: Limits, multiple: int, spacing: Spacing3 | None = None
) -> list[Window]:
    """The windows for all parts of a mask, parts that lie near each other in one.

    They have the CT's own spacing, moved into what the bundle was trained for, or `spacing` (mm). Raises
    `InvalidGridError` for a part that is larger than what the bundle can make.
    """
    spacing = spacing or own_spacing(grid, limits)
    reach = [CONTEXT_MM / s for s in grid.spacing]
    together, _ = parts(_grown_box_mask(mask, reach))
    numbers = np.where(mask, together, 0)
    boxes = ndimage.find_objects(numbers)
    windows = []
    for number, box in enumerate(boxes, start=1):
        if box is not None:
            window = _window(box, grid, spacing, limits, multiple)
            outer = grid.within(window)
            windows.append(Window(window, outer, grown_box(box, grid, NEAR_MM, outer), numbers[outer] == number))
    return windows


def _covering(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid of this spacing about the middle of a CT whose voxels reach to its edges or, by less than half, beyond.

    A lesion that the border of the CT cuts lies in it whole; the middles of all its voxels lie in the CT.
    """
    lattice = with_spacing(grid, spacing)
    shape = [int(np.ceil(length / s - EDGE)) for length, s in zip(grid.fov_mm, lattice.spacing, strict=True)]
    return lattice.window([(have - n) / 2 for have, n in zip(lattice.shape, shape, strict=True)], shape)


def grown_box(box: Sequence[slice], grid: Grid, margin_mm: float, within: Box) -> Box:
    """A box with a margin on every side, as far as another one goes."""
    x, y, z = (
        slice(max(part.start, own.start - round(margin_mm / s)), min(part.stop, own.stop + round(margin_mm / s)))
        for own, s, part in zip(box, grid.spacing, within, strict=True)
    )
    return x, y, z


def own_spacing(grid: Grid, limits: Limits) -> Spacing3:
    """The CT's own spacing, moved into what the bundle was trained for."""
    x, y, z = (
        float(np.clip(s, low, high))
        for s, low, high in zip(grid.spacing, limits.min_spacing_mm, limits.max_spacing_mm, strict=True)
    )
    return x, y, z


def _grown_box_mask(mask: np.ndarray, reach: Sequence[float]) -> np.ndarray:
    """The boxes of the parts of a mask, half of `reach` (voxels) larger on each side."""
    grown = np.zeros_like(mask)
    for box in ndimage.find_objects(parts(mask)[0]):
        where = tuple(
            slice(max(0, round(p.start - r / 2)), round(p.stop + r / 2)) for p, r in zip(box, reach, strict=True)
        )
        grown[where] = True
    return grown


def _window(box: Sequence[slice], grid: Grid, spacing: Spacing3, limits: Limits, multiple: int) -> Grid:
    """A grid of the network's spacing about a box of the CT, within the CT where that is large enough."""
    low = grid.world(np.array([part.start for part in box]) - 0.5)
    high = grid.world(np.array([part.stop for part in box]) - 0.5)
    most = [n // multiple * multiple for n in limits.max_size]
    lesion_mm, middle = high - low, (low + high) / 2
    coarse = [max(s, length / (0.6 * n)) for s, length, n in zip(spacing, lesion_mm, most, strict=True)]
    if any(s > top * (1 + 1e-6) for s, top in zip(coarse, limits.max_spacing_mm, strict=True)):
        told = " x ".join(f"{length:.0f}" for length in lesion_mm)
        raise InvalidGridError(
            f"a lesion of {told} mm does not fit into what the bundle makes at once, {in_words(most)} "
            f"voxels of at most {in_words(limits.max_spacing_mm)} mm; accepted: a smaller lesion"
        )
    least = limits.min_fov_mm or (0.0, 0.0, 0.0)
    wanted = [max(length + 2 * CONTEXT_MM, fov) for length, fov in zip(lesion_mm, least, strict=True)]
    size = [min(top, -(-round(w / s) // multiple) * multiple) for w, s, top in zip(wanted, coarse, most, strict=True)]
    lattice = _covering(grid, coarse)
    start = [_start(float(at), n, have) for at, n, have in zip(lattice.index(middle), size, lattice.shape, strict=True)]
    shape: Size3 = (size[0], size[1], size[2])
    return lattice.window(start, shape)


def _start(middle: float, size: int, have: int) -> int:
    """Where a window begins on one axis: centred, but within the volume where that is as long."""
    if size >= have:
        return (have - size) // 2
    return int(np.clip(round(middle - (size - 1) / 2), 0, have - size))
