"""Deferred operations: what a network wrote down while it ran on a `SlabTensor`.

A node knows the global shape of its result, which rows of its inputs give which of its own rows, and how to compute
them. Nothing is computed until the result is gathered; `schedule` then decides what is stored and in which order.
"""

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.arithmetic import Arithmetic, ConvMemory
from maisi.splitting.halo import Magnify, Transposed, Window, pad_rows
from maisi.splitting.layout import Layout, Range
from maisi.splitting.norm import Moments, affine, merge

_numbers = count()
HALF = (torch.float16, torch.bfloat16)


class Node:
    """One deferred operation; `inputs` give rows, or one value for all rows where they are a `Summary`."""

    flops_per_row = 0  # multiplications and additions x 2 of matrix products only
    view = False  # the result may share memory with the input

    def __init__(self, name: str, inputs: Sequence["Node"], layout: Layout, dtype: torch.dtype, cuts: tuple[int, ...]):
        self.name, self.inputs, self.layout, self.dtype, self.cuts = name, tuple(inputs), layout, dtype, cuts
        self.number = next(_numbers)
        self._consumers: list[weakref.ref[Node]] = []  # no WeakSet: its callbacks would swallow an interrupt
        for node in inputs:
            node._consumers.append(weakref.ref(self))

    @property
    def consumers(self) -> list["Node"]:
        """Nodes that read this one and are still there."""
        return [node for node in (reference() for reference in self._consumers) if node is not None]

    @property
    def rows(self) -> int:
        return self.layout.rows

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row of the result."""
        return self.layout.row_numel * self.dtype.itemsize

    reads_pieces = False  # takes stored rows as they lie, in pieces

    def overwrites(self, owned: Sequence[bool]) -> bool:
        """True where the result is written over an input that nobody else needs."""
        return False

    def on(self, inputs: Sequence["Node"]) -> "Node":
        """The same operation on other inputs of the same shapes and formats."""
        other = copy.copy(self)
        other.inputs, other.number, other._consumers = tuple(inputs), next(_numbers), []
        return other

    def held_bytes(self, start: int, stop: int) -> int:
        """Memory behind the result, for the planner."""
        return self.row_bytes * (stop - start)

    def workspace_bytes(self, start: int, stop: int, on: Arithmetic) -> int:
        """Memory that is needed only while computing, for the planner."""
        return 0

    def lasting_bytes(self, rows: int, on: Arithmetic) -> int:
        """Memory that is made for the first slab and kept until the sweep ends, for the planner."""
        return 0

    def need(self, start: int, stop: int) -> list[Range]:
        """Rows of every input that rows start..stop need."""
        return [(start, stop)] * len(self.inputs)

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        """Rows start..stop; an `owned` input is not needed afterwards and may be overwritten."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self.name} {tuple(self.layout.shape)}"


class Summary(Node):
    """One value of all rows of its input: a barrier, after which the input is read again."""

    def of_slab(self, slab: Tensor, on: Arithmetic) -> Any:
        """What one slab contributes."""
        raise NotImplementedError

    def of_all(self, parts: list[Any]) -> Any:
        """The value, from the contributions in the order of the rows."""
        raise NotImplementedError


class Leaf(Node):
    """A dense tensor, read where it lies."""

    def __init__(self, dense: Tensor, layout: Layout, cuts: tuple[int, ...]) -> None:
        super().__init__("input", (), layout, dense.dtype, cuts)
        self.dense = dense


class Pointwise(Node):
    """Rows of the result from the same rows of the inputs."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[Node],
        layout: Layout,
        dtype: torch.dtype,
        function: Callable[[Sequence[Tensor], int], Tensor],
        *,
        into: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None,
        flops: int = 0,
        view: bool = False,
        converts: bool = False,
    ) -> None:
        """`converts`: gives its only input in another number format."""
        super().__init__(name, inputs, layout, dtype, inputs[0].cuts)
        self._function, self._into, self.converts = function, into, converts
        self.flops_per_row = flops // max(layout.rows, 1)
        self.view = view

    def overwrites(self, owned: Sequence[bool]) -> bool:
        return self._over(owned) is not None

    def _over(self, owned: Sequence[bool]) -> int | None:
        """Which of the inputs takes the result."""
        if self._into is None:
            return None
        wanted = self.layout.shape, self.dtype
        fits = (
            free and (node.layout.shape, node.dtype) == wanted for node, free in zip(self.inputs, owned, strict=True)
        )
        return next((i for i, does in enumerate(fits) if does), None)

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        over = self._over(owned)
        if self._into is not None and over is not None and not torch.is_grad_enabled():
            return self._into(inputs, inputs[over])
        return self._function(inputs, stop - start)


class Linear(Node):
    """x W^T + b over the last dimension."""

    def __init__(self, source: Node, layout: Layout, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__("linear", (source,), layout, source.dtype, source.cuts)
        self.weight, self.bias = weight, bias
        self.flops_per_row = 2 * weight.shape[-1] * math.prod(layout.shape) // max(layout.rows, 1)

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        return on.linear(inputs[0], self.weight, self.bias, self.dtype)


class Windowed(Node):
    """A sliding window along the rows: convolution, pooling, padding."""

    def __init__(
        self,
        name: str,
        source: Node,
        layout: Layout,
        dtype: torch.dtype,
        cuts: tuple[int, ...],
        window: Window,
        function: Callable[[Tensor, int, Arithmetic], Tensor],
        *,
        flops: int = 0,
        pad_value: float = 0.0,
        memory: Callable[[int, Arithmetic], ConvMemory] | None = None,
        products: torch.dtype | None = None,
        again: Callable[[Node, torch.dtype], "Windowed"] | None = None,
    ) -> None:
        """`function(slab, padding, on)` applies the operation with that much padding of its own along the rows.

        `again` makes it of another source, for a result in another format; `products` is the format of its arithmetic.
        """
        super().__init__(name, (source,), layout, dtype, cuts)
        self.window, self._function, self._pad_value = window, function, pad_value
        self._memory = memory
        self.products, self._again = products or dtype, again
        self.flops_per_row = flops // max(layout.rows, 1)

    def on(self, inputs: Sequence[Node]) -> Node:
        return super().on(inputs) if self._again is None else self._again(inputs[0], self.dtype)

    def giving(self, dtype: torch.dtype) -> "Windowed":
        """The same with a result in another format."""
        assert self._again is not None
        return self._again(self.inputs[0], dtype)

    def need(self, start: int, stop: int) -> list[Range]:
        return [self.window.need(start, stop, self.inputs[0].rows)]

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        dim = self.inputs[0].layout.dim
        if stop == start:
            return inputs[0].new_empty(self.layout.local_shape(0), dtype=self.dtype)
        low, high = self.window.missing(start, stop, self.inputs[0].rows)
        if low == high and low == self.window.padding:
            return self._function(inputs[0], low, on)
        return self._function(pad_rows(inputs[0], dim, low, high, self._pad_value), 0, on)

    def workspace_bytes(self, start: int, stop: int, on: Arithmetic) -> int:
        if start == stop:  # nothing is computed
            return 0
        low, high = self.window.missing(start, stop, self.inputs[0].rows)
        if low == high == self.window.padding or low == high == 0:
            padded = 0
        else:
            first, last = self.need(start, stop)[0]
            padded = self.inputs[0].row_bytes * (last - first + low + high)
        return padded + (0 if self._memory is None else self._memory(stop - start, on).working)

    def lasting_bytes(self, rows: int, on: Arithmetic) -> int:
        return 0 if self._memory is None or rows == 0 else self._memory(rows, on).lasting


class TransposedConv(Node):
    """A transposed convolution; `function` applies it without bias and without cropping the rows."""

    def __init__(
        self,
        source: Node,
        layout: Layout,
        dtype: torch.dtype,
        cuts: tuple[int, ...],
        window: Transposed,
        function: Callable[[Tensor, Arithmetic], Tensor],
        bias: Tensor | None,
        flops: int,
    ) -> None:
        super().__init__("conv_transpose", (source,), layout, dtype, cuts)
        self.window, self._function, self._bias = window, function, bias
        self.flops_per_row = flops // max(layout.rows, 1)

    def need(self, start: int, stop: int) -> list[Range]:
        return [self.window.need(start, stop, self.inputs[0].rows)]

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        dim = self.layout.dim
        low, high = self.need(start, stop)[0]
        if high == low:
            result = inputs[0].new_zeros(self.layout.local_shape(stop - start), dtype=self.dtype)
        else:
            full = self._function(inputs[0], on)
            first = self.window.first_row(low)
            inner = max(start, first), min(stop, first + full.shape[dim])
            result = full.narrow(dim, inner[0] - first, inner[1] - inner[0])
            result = pad_rows(result, dim, inner[0] - start, stop - inner[1])
        if self._bias is not None:
            result = result + self._bias.reshape(-1, *[1] * (len(self.layout.shape) - 2))
        return result.to(self.dtype)


class Interpolated(Node):
    """Interpolation to a whole multiple of the rows."""

    def __init__(
        self,
        source: Node,
        layout: Layout,
        cuts: tuple[int, ...],
        magnify: Magnify,
        function: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__("interpolate", (source,), layout, source.dtype, cuts)
        self.magnify, self._function = magnify, function

    def need(self, start: int, stop: int) -> list[Range]:
        return [self.magnify.need(start, stop, self.inputs[0].rows)]

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        if stop == start:
            return inputs[0].new_empty(self.layout.local_shape(0))
        low = self.need(start, stop)[0][0]
        return self.magnify.crop(self._function(inputs[0]), self.layout.dim, low, start, stop)

    def held_bytes(self, start: int, stop: int) -> int:
        low, high = self.need(start, stop)[0]
        return self.row_bytes * self.magnify.factor * (high - low)


class MomentsOf(Summary):
    """Moments of every (sample, group) over all rows."""

    def __init__(self, source: Node, groups: int) -> None:
        super().__init__("moments", (source,), source.layout, torch.float64, source.cuts)
        self.groups = groups

    def of_slab(self, slab: Tensor, on: Arithmetic) -> Moments:
        return on.moments(slab, self.groups, self.layout.dim)

    def of_all(self, parts: list[Moments]) -> Moments:
        return merge(parts)


class Normalised(Node):
    """Group normalisation with known moments, and SiLU after it if `silu`."""

    reads_pieces = True

    def __init__(
        self,
        source: Node,
        stats: MomentsOf,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        silu: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` of the result, the source's by default."""
        super().__init__("group_norm", (source, stats), source.layout, dtype or source.dtype, source.cuts)
        self.weight, self.bias, self.eps, self.silu = weight, bias, eps, silu

    def giving(self, dtype: torch.dtype, silu: bool) -> "Normalised":
        """The same with a result in another format, or with SiLU."""
        source, stats = self.inputs
        assert isinstance(stats, MomentsOf)
        return Normalised(source, stats, self.weight, self.bias, self.eps, silu, dtype)

    def compute(self, inputs: Sequence[Any], start: int, stop: int, owned: Sequence[bool], on: Arithmetic) -> Tensor:
        pieces, stats = inputs
        pieces = pieces if isinstance(pieces, list) else [pieces]
        shape = self.layout.shape
        ready = affine(stats, self.weight, self.bias, self.eps, shape[1], len(shape))
        if not self.layout.plain and len(pieces) > 1:
            pieces = [self.layout.join(pieces)]
        return on.normalise(pieces, ready, self.layout.dim, self.silu, self.dtype)


class Whole(Summary):
    """All rows as one dense tensor: keys and values of attention."""

    def __init__(self, source: Node) -> None:
        super().__init__("gather", (source,), source.layout, source.dtype, source.cuts)

    def of_slab(self, slab: Tensor, on: Arithmetic) -> Tensor:
        return slab if torch.is_grad_enabled() else slab.contiguous()

    def of_all(self, parts: list[Tensor]) -> Tensor:
        return self.layout.join(parts)


def conv_flops(weight: Tensor, layout: Layout) -> int:
    """Multiplications and additions of a convolution with that result."""
    return 2 * math.prod(weight.shape[1:]) * math.prod(layout.shape)


def silu_into(inputs: Sequence[Tensor], out: Tensor) -> Tensor:
    return F.silu(out, inplace=True)
