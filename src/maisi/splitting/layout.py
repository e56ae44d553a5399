"""Where the rows of a split tensor lie: along one dimension, or inside one that a reshape has merged with others.

A *row* is one step along the spatial axis that is split. Flattening voxels to tokens turns (x, y, z) into one dimension
of `before * rows * after` entries; a slab of it holds `before * its rows * after` of them, in the same order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Range = tuple[int, int]  # rows start..stop, stop excluded


class Layout(NamedTuple):
    """Global shape of a split tensor and where its rows are."""

    shape: tuple[int, ...]
    dim: int
    rows: int
    before: int = 1
    after: int = 1

    @property
    def from_right(self) -> int:
        """The rows' dimension counted from the last one, as broadcasting counts."""
        return self.dim - len(self.shape)

    @property
    def row_numel(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape) // max(self.rows, 1)

    @property
    def plain(self) -> bool:
        """True where the dimension holds rows only."""
        return self.before == 1 and self.after == 1

    def local_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of a slab of that many rows."""
        return (*self.shape[: self.dim], self.before * rows * self.after, *self.shape[self.dim + 1 :])

    def unfolded(self, rows: int) -> tuple[int, ...]:
        """Shape of such a slab with the rows in a dimension of their own, number `dim + 1`."""
        return (*self.shape[: self.dim], self.before, rows, self.after, *self.shape[self.dim + 1 :])

    def take(self, slab: Tensor, start: int, stop: int, slab_start: int = 0) -> Tensor:
        """Rows start..stop of a slab that begins at row `slab_start`; a view where memory allows."""
        if self.before == 1:
            return slab.narrow(self.dim, (start - slab_start) * self.after, (stop - start) * self.after)
        rows = slab.shape[self.dim] // (self.before * self.after)
        if stop - start == rows:
            return slab
        rows_apart = slab.reshape(self.unfolded(rows)).narrow(self.dim + 1, start - slab_start, stop - start)
        return rows_apart.reshape(self.local_shape(stop - start))

    def join(self, slabs: Sequence[Tensor]) -> Tensor:
        """One tensor of adjoining slabs, in order."""
        if len(slabs) == 1:
            return slabs[0]
        if self.before == 1:
            return torch.cat(list(slabs), self.dim)
        inner = self.before * self.after
        counts = [slab.shape[self.dim] // inner for slab in slabs]
        apart = [slab.reshape(self.unfolded(rows)) for slab, rows in zip(slabs, counts, strict=True)]
        return torch.cat(apart, self.dim + 1).reshape(self.local_shape(sum(counts)))

    def moved(self, shape: Sequence[int], dim: int) -> "Layout":
        """The same rows in a tensor of another shape, at another dimension."""
        return self._replace(shape=tuple(shape), dim=dim)

    def resized(self, shape: Sequence[int]) -> "Layout":
        """The layout of a result that has another number of rows in the same dimension."""
        return self._replace(shape=tuple(shape), rows=shape[self.dim])

    def reshaped(self, shape: Sequence[int], home: int) -> "Layout | None":
        """The same rows after a reshape, or None where it tears them apart; `home` is the dimension they began in."""
        outer = math.prod(self.shape[: self.dim]) * self.before
        fits = []
        for dim, size in enumerate(shape):
            left = math.prod(shape[:dim])
            if left and outer % left == 0 and size and size % ((outer // left) * self.rows) == 0:
                before = outer // left
                fits.append(Layout(tuple(shape), dim, self.rows, before, size // (before * self.rows)))

        def likeness(fit: Layout) -> tuple[bool, bool, bool, int]:  # a single row fits in many ways
            spatial = fit.plain and fit.dim == home and len(shape) > 4
            return spatial, (fit.before, fit.after) == (self.before, self.after), fit.plain, fit.dim

        return max(fits, key=likeness, default=None)
