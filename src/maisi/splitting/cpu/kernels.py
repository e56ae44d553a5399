"""The convolution of a slab on the CPU: channels last, and with a sixth or a quarter of the multiplications in float32.

Where the processor does not multiply in bfloat16 (no AVX512-BF16, no AMX), slabs of it are multiplied in float32.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.arithmetic import ConvMemory, Where
from maisi.splitting.cpu import compiled
from maisi.splitting.cpu.parallel import CHUNK_BYTES, on_chunks
from maisi.splitting.cpu.weights import TransformedWeight
from maisi.splitting.cpu.winograd import OUTPUTS, TAPS, arithmetic, transformed_bytes, winograd, workspace_bytes
from maisi.splitting.halo import Window, pad_rows

FAST = (torch.float32, torch.bfloat16)  # what oneDNN convolves
WIDE, WIDE_IN_LONG_LINES = 40, 32  # in * out / (in + out) channels from which products cost more than transforming
LONG = 64  # voxels of a line from which the fewer calls pay earlier
MANY = 4096  # voxels from which products cost more than transforming the weights
MANY_COMPILED = 2048  # the same for the compiled kernel
NARROW = 32  # channels up to which the weights are small beside anything
WIDENED_BYTES = 8 << 20  # of a slab that are held in float32 at once
LEAST_ROWS, LEAST_ROWS_COMPILED = 3, 2  # fewer would leave most of a tile empty


@cache
def multiplies_bfloat16() -> bool:
    """True where this processor does; elsewhere torch emulates it slowly, or oneDNN refuses.

    oneDNN is asked too: it may be told to use fewer of the processor's instructions (`ONEDNN_MAX_CPU_ISA`).
    """
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_products and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def prefers_bfloat16() -> bool:
    """True where bfloat16 is taken to be the fastest: with AMX, as measured before there was a compiled convolution."""
    return torch.cpu._is_amx_tile_supported() and multiplies_bfloat16()


def is_widened(dtype: torch.dtype) -> bool:
    """True for slabs whose products are computed in float32 on this processor."""
    return dtype == torch.bfloat16 and not multiplies_bfloat16()


def convolve(slab: Tensor, weights: TransformedWeight, bias: Tensor | None, where: Where, dtype: torch.dtype) -> Tensor:
    """The convolution of a slab that carries the halo it needs, computed in the weights' format, given as `dtype`.

    Slabs are (b, c, x, y, z), in one of the `FAST` formats.
    """
    stride, padding, dilation, groups = where
    weight = weights.weight
    slab = slab.contiguous(memory_format=torch.channels_last_3d)
    if where.plain and weight[0, 0].numel() == 1 and max(padding) == 0:
        return pointwise(slab, weight, bias, dtype)
    is_mixed = {slab.dtype, weight.dtype, dtype} != {slab.dtype}
    size = size_after(slab.shape[2:], weight, padding)
    if where.plain and not is_mixed and takes_winograd(size, weight, slab.dtype):
        return by_winograd(slab, weights, bias, padding)
    if groups == 1 and max(dilation) == 1 and not is_mixed and has_few_voxels(slab, weight, stride, padding):
        return as_matrix_product(slab, weight, bias, stride, padding)
    if is_mixed or is_widened(slab.dtype):
        wide_weight, wide_bias = weight.float(), bias if bias is None else bias.float()

        def convolved(piece: Tensor, own_padding: Sequence[int]) -> Tensor:
            return direct(piece, wide_weight, wide_bias, stride, own_padding, dilation, groups)

        return widened(slab, weight, convolved, padding, stride, dilation, dtype=dtype)
    return direct(slab, weight, bias, stride, padding, dilation, groups)


def direct(
    slab: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """oneDNN's convolution; of channels last where that is safe: dilated, with a stride and padding, it may crash."""
    if max(dilation) > 1:
        slab = slab.contiguous()
    return torch.mkldnn_convolution(slab, weight, bias, padding, stride, dilation, groups)


def widened(
    slab: Tensor,
    weight: Tensor,
    convolved: Callable[[Tensor, Sequence[int]], Tensor],
    padding: Sequence[int],
    stride: Sequence[int] = (1, 1, 1),
    dilation: Sequence[int] = (1, 1, 1),
    unit: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The convolution in float32, some units of rows at a time, with their halo, each rounded to `dtype`."""
    window = Window(weight.shape[2], stride[0], padding[0], dilation[0])
    sizes = zip(slab.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    result = torch.empty(slab.shape[0], weight.shape[0], *size, dtype=dtype, memory_format=torch.channels_last_3d)
    rows = widened_rows(size, weight, stride, unit)
    for start in range(0, size[0], rows):
        stop = min(start + rows, size[0])
        low, high = window.need(start, stop, slab.shape[2])
        piece = pad_rows(slab[:, :, low:high].float(), 2, *window.missing(start, stop, slab.shape[2]))
        result[:, :, start:stop] = convolved(piece, (0, *padding[1:]))
    return result


def widened_rows(size: Sequence[int], weight: Tensor, stride: Sequence[int], unit: int) -> int:
    """Rows of the result that `widened` computes at once."""
    return unit * max(1, WIDENED_BYTES // widened_bytes(size[1:], weight, stride) // unit)


def widened_bytes(plane: Sequence[int], weight: Tensor, stride: Sequence[int]) -> int:
    """What `widened` holds in float32 for a row of the result."""
    return 4 * math.prod(plane) * (weight.shape[0] + weight.shape[1] * math.prod(stride))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W^T + b over the last dimension, given as `dtype`; a cacheful at a time where it is computed in another one."""
    is_mixed = {x.dtype, weight.dtype, dtype} != {x.dtype}
    if x.numel() == 0 or not (is_mixed or is_widened(x.dtype)):
        return F.linear(x.to(weight.dtype), weight, bias).to(dtype)
    rows, result = x.reshape(-1, x.shape[-1]), x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)
    wide_weight, wide_bias = weight.float(), bias if bias is None else bias.float()
    count = max(1, CHUNK_BYTES // (4 * x.shape[-1]))

    def fill(chunk: tuple[Tensor, Tensor]) -> None:
        source, target = chunk
        target.copy_(F.linear(source.float(), wide_weight, wide_bias))

    on_chunks(fill, list(zip(rows.split(count), result.view(-1, weight.shape[0]).split(count), strict=True)), x.device)
    return result


def has_few_voxels(slab: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """True where the weights are larger than all that they are multiplied with: copying them would take longest."""
    sizes = zip(slab.shape[2:], weight.shape[2:], stride, padding, strict=True)
    voxels = slab.shape[0] * math.prod((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return weight.shape[0] >= NARROW and 4 * voxels <= weight.shape[0]


def as_matrix_product(
    slab: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution as the product of all windows with the weights as they lie."""
    windows = F.pad(slab, [amount for p in reversed(padding) for amount in (p, p)])
    for dim, (kernel, step) in enumerate(zip(weight.shape[2:], stride, strict=True), start=2):
        windows = windows.unfold(dim, kernel, step)  # (b, c, x, y, z, kx, ky, kz) in the end
    batch, _, *size = windows.shape[:5]
    lines = weight.permute(0, 2, 3, 4, 1)
    if lines.is_contiguous():  # then so are the channels of the windows
        voxels = linear(
            windows.permute(0, 2, 3, 4, 5, 6, 7, 1).reshape(-1, lines[0].numel()), lines.flatten(1), bias, slab.dtype
        )
    else:
        voxels = linear(
            windows.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, lines[0].numel()), weight.flatten(1), bias, slab.dtype
        )
    return voxels.view(batch, *size, -1).permute(0, 4, 1, 2, 3)


def pointwise(slab: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A 1 x 1 x 1 convolution as one matrix product over the voxels of a channels-last slab."""
    voxels = slab.permute(0, 2, 3, 4, 1)
    return linear(voxels, weight.flatten(1), bias, dtype).permute(0, 4, 1, 2, 3)


def mean_pool(slab: Tensor, kernel: Sequence[int]) -> Tensor:
    """Means of blocks of voxels, rounded once; torch's own pooling reads channels-last slabs slowly."""
    voxels = slab.permute(0, 2, 3, 4, 1)
    for axis, size in enumerate(kernel, start=1):
        blocks = voxels.narrow(axis, 0, voxels.shape[axis] // size * size).unflatten(axis, (-1, size))
        first, *others = blocks.unbind(axis + 1)
        voxels = first.to(arithmetic(slab.dtype))
        for other in others:
            voxels = voxels + other
    return (voxels / math.prod(kernel)).to(slab.dtype).permute(0, 4, 1, 2, 3)


def mean_pool_bytes(size: Sequence[int], channels: int, kernel: Sequence[int], dtype: torch.dtype) -> int:
    """Memory of `mean_pool` that gives `size` voxels, for the planner: means of the first axis, and half of them."""
    halves = math.prod(size) * channels * math.prod(kernel[1:])
    return 2 * halves * arithmetic(dtype).itemsize


def size_after(size: Sequence[int], weight: Tensor, padding: Sequence[int]) -> tuple[int, ...]:
    """Voxels an axis of the result of a convolution without stride."""
    return tuple(n + 2 * p - k + 1 for n, p, k in zip(size, padding, weight.shape[2:], strict=True))


def takes_winograd(size: Sequence[int], weight: Tensor, dtype: torch.dtype) -> bool:
    """True where Winograd's minimal filtering gives a result of that size, and pays."""
    if not (dtype == torch.float32 or is_widened(dtype)):
        return False
    if compiled.serves(weight):
        return math.prod(size) >= MANY_COMPILED and min(size) >= LEAST_ROWS_COMPILED
    out_channels, in_channels, *taps = weight.shape
    least = WIDE_IN_LONG_LINES if size[2] >= LONG else WIDE
    is_wide = out_channels * in_channels >= least * (out_channels + in_channels)
    return is_wide and taps[:2] == [TAPS, TAPS] and math.prod(size) >= MANY and min(size[:2]) >= LEAST_ROWS


def by_winograd(slab: Tensor, weights: TransformedWeight, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """The convolution by Winograd's minimal filtering; by the compiled kernel where there is one for it."""
    if not compiled.serves(weights.weight):
        return winograd(slab, weights.weight, bias, padding, weights.transformed())

    def convolved(piece: Tensor, own_padding: Sequence[int]) -> Tensor:
        return compiled.convolve(piece, weights.weight, bias, own_padding, weights.transformed())

    if is_widened(slab.dtype):
        return widened(slab, weights.weight, convolved, padding, unit=OUTPUTS)
    return convolved(slab, padding)


def conv_memory(
    size: Sequence[int], weight: Tensor, where: Where, formats: tuple[torch.dtype, torch.dtype]
) -> ConvMemory:
    """Memory of a convolution that gives `size` voxels, for the planner; `formats` are those of slab and result."""
    dtype, is_mixed = formats[0], {*formats, weight.dtype} != {weight.dtype}
    if len(size) == 3 and where.plain and not is_mixed and takes_winograd(size, weight, dtype):
        return winograd_memory(size, weight, where.padding, dtype)
    if not (is_mixed or is_widened(dtype)):
        return ConvMemory(weight.numel() * dtype.itemsize, 0)
    if weight[0, 0].numel() == 1:
        return ConvMemory(4 * weight.numel(), 0)
    if len(size) != 3:
        return ConvMemory(2 * weight.numel(), 0)
    return ConvMemory(pieces_bytes(size, weight, where.stride, 1) + 8 * weight.numel(), 0)


def winograd_memory(size: Sequence[int], weight: Tensor, padding: Sequence[int], dtype: torch.dtype) -> ConvMemory:
    """Memory of `by_winograd`."""
    if not compiled.serves(weight):
        threads = workspace_bytes((size[1], size[2] + weight.shape[4] - 1 - 2 * padding[2]), weight, padding[2])
        return ConvMemory(max(threads, transformed_bytes(weight)), transformed_bytes(weight))
    pieces = pieces_bytes(size, weight, (1, 1, 1), OUTPUTS) if is_widened(dtype) else 0
    threads = compiled.workspace_bytes(size[1:], weight)
    return ConvMemory(max(threads + pieces, compiled.packing_bytes(weight)), compiled.packed_bytes(weight))


def pieces_bytes(size: Sequence[int], weight: Tensor, stride: Sequence[int], unit: int) -> int:
    """What `widened` holds at once."""
    rows = min(size[0], widened_rows(size, weight, stride, unit)) + weight.shape[2]
    return rows * widened_bytes(size[1:], weight, stride)
