"""How slabs are computed: an `Arithmetic` is chosen once a run, by the device and by whether gradients are wanted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting import norm
from maisi.splitting.norm import Affine, Moments


class ConvMemory(NamedTuple):
    """Bytes that a convolution needs besides input and output: while it computes, and until its sweep ends."""

    working: int
    lasting: int


class Arithmetic(Protocol):
    """What of the computation of slabs depends on where they lie."""

    row_unit: int
    """Rows of which steps are multiples where they can be."""

    def end_sweep(self) -> None:
        """Gives back what was kept for the slabs of a sweep."""

    def scratch_bytes(self) -> int:
        """What is held besides what operations read and write."""

    def convolve(
        self,
        func: Callable[..., Tensor],
        slab: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        where: "Where",
        dtype: torch.dtype,
    ) -> Tensor:
        """A convolution in the weights' format, given as `dtype`."""

    def conv_memory(
        self, size: Sequence[int], weight: Tensor, where: "Where", formats: tuple[torch.dtype, torch.dtype]
    ) -> ConvMemory:
        """Memory of a convolution that gives `size` voxels; `formats` are those of the slab and of the result."""

    def transpose_convolve(self, func: Callable[[Tensor, Tensor], Tensor], slab: Tensor, weight: Tensor) -> Tensor:
        """A transposed convolution without bias, in the weights' format or a wider one."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x W^T + b over the last dimension in the weights' format, given as `dtype`."""

    def pool(self, func: Callable[[Tensor], Tensor], slab: Tensor, blocks: Sequence[int] | None) -> Tensor:
        """Pooling; of `blocks` it takes means, where given."""

    def pool_bytes(self, size: Sequence[int], channels: int, blocks: Sequence[int], dtype: torch.dtype) -> int:
        """Memory of means of blocks that give `size` voxels, while they are computed."""

    def moments(self, slab: Tensor, groups: int, dim: int) -> Moments:
        """Moments of a slab (b, c, ...) that is split along `dim`, for every (sample, group)."""

    def normalise(self, pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool, dtype: torch.dtype) -> Tensor:
        """Adjoining slabs normalised, and activated if `silu`, into one fresh tensor."""


class Where(NamedTuple):
    """Where the taps of a convolution lie."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def plain(self) -> bool:
        """True where every voxel of every channel is read at every tap."""
        return max(*self.stride, *self.dilation, self.groups) == 1


class TorchArithmetic:
    """torch's own operations, on any device, with gradients or without."""

    row_unit = 1

    def end_sweep(self) -> None:
        return None

    def scratch_bytes(self) -> int:
        return norm.CHUNK_BYTES

    def convolve(
        self,
        func: Callable[..., Tensor],
        slab: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        where: Where,
        dtype: torch.dtype,
    ) -> Tensor:
        return func(slab.to(weight.dtype), weight, bias, *where).to(dtype)

    def conv_memory(
        self, size: Sequence[int], weight: Tensor, where: Where, formats: tuple[torch.dtype, torch.dtype]
    ) -> ConvMemory:
        return ConvMemory(weight.numel() * weight.dtype.itemsize, 0)

    def transpose_convolve(self, func: Callable[[Tensor, Tensor], Tensor], slab: Tensor, weight: Tensor) -> Tensor:
        return func(slab.to(weight.dtype), weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(weight.dtype), weight, bias).to(dtype)

    def pool(self, func: Callable[[Tensor], Tensor], slab: Tensor, blocks: Sequence[int] | None) -> Tensor:
        if slab.dtype == torch.bfloat16 and slab.device.type == "cpu":  # torch has no such kernel
            return func(slab.float()).to(slab.dtype)
        return func(slab)

    def pool_bytes(self, size: Sequence[int], channels: int, blocks: Sequence[int], dtype: torch.dtype) -> int:
        return 0

    def moments(self, slab: Tensor, groups: int, dim: int) -> Moments:
        return norm.moments(slab, groups, dim)

    def normalise(self, pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool, dtype: torch.dtype) -> Tensor:
        return norm.normalise(pieces, ready, dim, silu, dtype)
