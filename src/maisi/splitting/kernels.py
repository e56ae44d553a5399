"""The convolution of a slab on the CPU: channels last, and with a quarter of the multiplications in float32."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.winograd import TAPS, Filter, transformed_bytes, winograd, workspace_bytes

FAST = (torch.float32, torch.bfloat16)  # what oneDNN convolves
WIDE = 32  # channels from which multiplications cost more than additions
MANY = 4096  # voxels from which they cost more than transforming the weights
LEAST_ROWS = 3  # fewer would leave most of a tile empty


def convolve(
    func: Callable[..., Tensor],
    slab: Tensor,
    weights: Filter,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of a slab that carries the halo it needs."""
    weight = weights.weight
    if slab.dim() != 5 or slab.device.type != "cpu" or torch.is_grad_enabled() or slab.dtype not in FAST:
        return func(slab, weight, bias, stride, padding, dilation, groups)
    slab = slab.contiguous(memory_format=torch.channels_last_3d)
    plain = groups == 1 and max(stride) == 1 and max(dilation) == 1
    if plain and weight[0, 0].numel() == 1 and max(padding) == 0:
        return pointwise(slab, weight, bias)
    if plain and saves_products(size_after(slab.shape[2:], weight, padding), weight, slab.dtype):
        return winograd(slab, weight, bias, padding, weights.transformed())
    if groups == 1 and max(dilation) == 1 and has_few_voxels(slab, weight, stride, padding):
        return as_matrix_product(slab, weight, bias, stride, padding)
    return torch.mkldnn_convolution(slab, weight, bias, padding, stride, dilation, groups)


def has_few_voxels(slab: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """True where the weights are larger than all that they are multiplied with: copying them would take longest."""
    sizes = zip(slab.shape[2:], weight.shape[2:], stride, padding, strict=True)
    voxels = slab.shape[0] * math.prod((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return weight.shape[0] >= WIDE and 4 * voxels <= weight.shape[0]


def as_matrix_product(
    slab: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution as the product of all windows with the weights as they lie."""
    windows = F.pad(slab, [amount for p in reversed(padding) for amount in (p, p)])
    for dim, (kernel, step) in enumerate(zip(weight.shape[2:], stride, strict=True), start=2):
        windows = windows.unfold(dim, kernel, step)  # (b, c, x, y, z, kx, ky, kz) in the end
    batch, _, *size = windows.shape[:5]
    windows = windows.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, weight[0].numel())
    voxels = F.linear(windows, weight.flatten(1), bias)
    return voxels.view(batch, *size, -1).permute(0, 4, 1, 2, 3)


def pointwise(slab: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 x 1 convolution as one matrix product over the voxels of a channels-last slab."""
    voxels = slab.permute(0, 2, 3, 4, 1)
    return F.linear(voxels, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


def size_after(size: Sequence[int], weight: Tensor, padding: Sequence[int]) -> tuple[int, ...]:
    """Voxels an axis of the result of a convolution without stride."""
    return tuple(n + 2 * p - k + 1 for n, p, k in zip(size, padding, weight.shape[2:], strict=True))


def saves_products(size: Sequence[int], weight: Tensor, dtype: torch.dtype) -> bool:
    """True where `winograd` gives a result of that size, and pays."""
    wide = min(weight.shape[:2]) >= WIDE and tuple(weight.shape[2:4]) == (TAPS, TAPS)
    return dtype == torch.float32 and wide and math.prod(size) >= MANY and min(size[:2]) >= LEAST_ROWS


class ConvMemory(NamedTuple):
    """Bytes that a convolution needs besides input and output: while it computes, and until its sweep ends."""

    working: int
    lasting: int


def conv_memory(
    size: Sequence[int], weight: Tensor, padding: Sequence[int], dtype: torch.dtype, plain: bool
) -> ConvMemory:
    """Memory of a convolution that gives `size` voxels, for the planner; `plain`: stride, dilation and groups are 1."""
    reordered = weight.numel() * dtype.itemsize
    if len(size) != 3 or not plain or not saves_products(size, weight, dtype):
        return ConvMemory(reordered, 0)
    threads = workspace_bytes((size[1], size[2] + weight.shape[4] - 1 - 2 * padding[2]), weight, padding[2])
    return ConvMemory(max(threads, transformed_bytes(weight)), transformed_bytes(weight))
