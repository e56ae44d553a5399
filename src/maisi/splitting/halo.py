"""Which rows an operation needs to give rows start..stop of its result, and how it gives them.

An operation with a neighbourhood (a *window*) reads a few rows beyond the slab: its halo. Rows beyond the tensor's
true border are zero for a convolution and repeated for interpolation, exactly as for the whole tensor; inside, the
neighbour's rows are read.
"""

from dataclasses import dataclass, replace
from math import ceil, floor

import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.layout import Range


def clip(start: int, stop: int, rows: int) -> Range:
    """The part of start..stop that lies in 0..rows, never of negative length."""
    start = min(max(start, 0), rows)
    return start, min(max(stop, start), rows)


@dataclass(frozen=True)
class Window:
    """Sliding window along the rows: output row j reads input rows j * stride - padding + t * dilation."""

    size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def span(self, start: int, stop: int) -> Range:
        """Input rows of output rows start..stop, padding included (so possibly outside of the tensor)."""
        first = start * self.stride - self.padding
        return first, (stop - 1) * self.stride - self.padding + (self.size - 1) * self.dilation + 1

    def need(self, start: int, stop: int, rows: int) -> Range:
        """Input rows of output rows start..stop that exist."""
        if stop <= start:
            at = min(max(start * self.stride, 0), rows)
            return at, at
        return clip(*self.span(start, stop), rows)

    def missing(self, start: int, stop: int, rows: int) -> tuple[int, int]:
        """How many padding rows a slab start..stop needs on either side."""
        first, last = self.span(start, stop)
        low, high = clip(first, last, rows)
        if low == high:  # the window sees padding only
            return last - first, 0
        return low - first, last - high


@dataclass(frozen=True)
class Transposed:
    """Transposed window: input row i adds to output rows i * stride - padding + t * dilation."""

    size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def need(self, start: int, stop: int, rows: int) -> Range:
        """Input rows that add to output rows start..stop."""
        if stop <= start:
            at = min(max(start // self.stride, 0), rows)
            return at, at
        reach = (self.size - 1) * self.dilation
        first = ceil((start + self.padding - reach) / self.stride)
        return clip(first, floor((stop - 1 + self.padding) / self.stride) + 1, rows)

    def first_row(self, low: int) -> int:
        """Output row that the first tap of input row `low` adds to."""
        return low * self.stride - self.padding


@dataclass(frozen=True)
class Magnify:
    """Interpolation to a whole multiple of the rows."""

    factor: int
    linear: bool

    def need(self, start: int, stop: int, rows: int) -> Range:
        """Input rows of output rows start..stop; at the true border interpolation repeats the outermost row."""
        if stop <= start:
            at = min(start // self.factor, rows)
            return at, at
        if not self.linear:
            return clip(start // self.factor, (stop - 1) // self.factor + 1, rows)
        first, last = ((j + 0.5) / self.factor - 0.5 for j in (start, stop - 1))
        return clip(floor(first), floor(last) + 2, rows)

    def crop(self, magnified: Tensor, dim: int, low: int, start: int, stop: int) -> Tensor:
        """Rows start..stop of the interpolation of a slab that began at input row `low`."""
        return magnified.narrow(dim, start - self.factor * low, stop - start)


def pad_rows(slab: Tensor, dim: int, low: int, high: int, value: float = 0.0) -> Tensor:
    """The slab with `low` and `high` constant rows before and after it."""
    if low == 0 and high == 0:
        return slab
    amounts = [0, 0] * (slab.dim() - dim - 1) + [low, high]
    return F.pad(slab, amounts, value=value)


def without_padding(window: Window) -> Window:
    """The same window over rows that already carry their padding."""
    return replace(window, padding=0)


def through(cuts: tuple[int, ...], rows_in: int, rows_out: int) -> tuple[int, ...]:
    """Slab borders after an operation that turns `rows_in` rows into `rows_out`: an output row follows its inputs."""
    if rows_in == rows_out:
        return cuts
    ratio = rows_out / max(rows_in, 1)
    inner = (min(max(ceil(cut * ratio - 1e-9), 0), rows_out) for cut in cuts[1:-1])
    return (0, *inner, rows_out)
