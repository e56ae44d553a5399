"""The arithmetic of a CPU without gradients: slabs are channels last, and the fastest kernel is taken."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maisi.splitting.arithmetic import Arithmetic, ConvMemory, TorchArithmetic, Where
from maisi.splitting.cpu import kernels, norms
from maisi.splitting.cpu.parallel import scratch_bytes
from maisi.splitting.cpu.weights import TransformedWeight, transformed_weight
from maisi.splitting.cpu.winograd import OUTPUTS
from maisi.splitting.norm import Affine, Moments


def arithmetic_on(device: torch.device) -> Arithmetic:
    """The arithmetic of a run on a device: torch's own but on a CPU without gradients."""
    return CpuArithmetic() if device.type == "cpu" and not torch.is_grad_enabled() else TorchArithmetic()


class CpuArithmetic:
    """Kernels for CPUs, and what they keep for the slabs of a sweep."""

    row_unit = OUTPUTS

    def __init__(self) -> None:
        self._weights: dict[int, TransformedWeight] = {}
        self._torch = TorchArithmetic()

    def end_sweep(self) -> None:
        self._weights = {}

    def scratch_bytes(self) -> int:
        return scratch_bytes()

    def convolve(
        self,
        func: Callable[..., Tensor],
        slab: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        where: Where,
        dtype: torch.dtype,
    ) -> Tensor:
        if slab.dim() != 5 or slab.dtype not in kernels.FAST:
            return self._torch.convolve(func, slab, weight, bias, where, dtype)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = transformed_weight(weight)  # holds the tensor, so no other one gets its id
        return kernels.convolve(slab, self._weights[id(weight)], bias, where, dtype)

    def conv_memory(
        self, size: Sequence[int], weight: Tensor, where: Where, formats: tuple[torch.dtype, torch.dtype]
    ) -> ConvMemory:
        return kernels.conv_memory(size, weight, where, formats)

    def transpose_convolve(self, func: Callable[[Tensor, Tensor], Tensor], slab: Tensor, weight: Tensor) -> Tensor:
        if kernels.is_widened(slab.dtype):
            return func(slab.float(), weight.float())
        return self._torch.transpose_convolve(func, slab, weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return kernels.linear(x, weight, bias, dtype)

    def pool(self, func: Callable[[Tensor], Tensor], slab: Tensor, blocks: Sequence[int] | None) -> Tensor:
        return self._torch.pool(func, slab, None) if blocks is None else kernels.mean_pool(slab, blocks)

    def pool_bytes(self, size: Sequence[int], channels: int, blocks: Sequence[int], dtype: torch.dtype) -> int:
        return kernels.mean_pool_bytes(size, channels, blocks, dtype)

    def moments(self, slab: Tensor, groups: int, dim: int) -> Moments:
        return norms.moments(slab, groups, dim)

    def normalise(self, pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool, dtype: torch.dtype) -> Tensor:
        return norms.normalise(pieces, ready, dim, silu, dtype)
