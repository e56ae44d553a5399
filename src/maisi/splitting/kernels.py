"""The convolution of a slab on the CPU: channels last, and with fewer multiplications along the rows in float32."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.parallel import on_chunks

FAST = (torch.float32, torch.bfloat16)  # what oneDNN convolves
WIDE = 32  # channels from which multiplications cost more than additions
MANY = 4096  # voxels from which they cost more than transforming the weights
TILE_BYTES = 12 << 20  # transformed input that a thread holds at once
BAND_BYTES = 1 << 18  # of one row while it is transformed

# F(4, 3) of Winograd's minimal filtering, in the form of Lavin & Gray, "Fast algorithms for convolutional neural
# networks", 2016, section 4.2: four outputs of a three-tap filter take six products instead of twelve.
KERNEL_TO_TILE = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def convolve(
    func: Callable[..., Tensor],
    slab: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of a slab that carries the halo it needs."""
    if slab.dim() != 5 or slab.device.type != "cpu" or torch.is_grad_enabled() or slab.dtype not in FAST:
        return func(slab, weight, bias, stride, padding, dilation, groups)
    slab = slab.contiguous(memory_format=torch.channels_last_3d)
    plain = groups == 1 and max(stride) == 1 and max(dilation) == 1
    if plain and weight[0, 0].numel() == 1 and max(padding) == 0:
        return pointwise(slab, weight, bias)
    if plain and saves_products(slab, weight, padding):
        return winograd(slab, weight, bias, padding)
    if groups == 1 and max(dilation) == 1 and has_few_voxels(slab, weight, stride, padding):
        return as_matrix_product(slab, weight, bias, stride, padding)
    return torch.mkldnn_convolution(slab, weight, bias, padding, stride, dilation, groups)


def has_few_voxels(slab: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """True where the weights are larger than all that they are multiplied with: copying them would take longest."""
    sizes = zip(slab.shape[2:], weight.shape[2:], stride, padding, strict=True)
    voxels = slab.shape[0] * math.prod((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return weight.shape[0] >= WIDE and voxels <= 2 * weight.shape[0]


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


def saves_products(slab: Tensor, weight: Tensor, padding: Sequence[int]) -> bool:
    """True where `winograd` applies and pays."""
    rows = slab.shape[2] + 2 * padding[0] - 2
    wide = min(weight.shape[:2]) >= WIDE
    many = rows * slab.shape[3] * slab.shape[4] >= MANY
    return slab.dtype == torch.float32 and wide and many and weight.shape[2] == 3 and weight.shape[3] == 3 and rows >= 4


def winograd(slab: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """A convolution of three taps along x as six 2-D convolutions on tiles of four rows, in half the products."""
    batch, _, rows_in, *plane = slab.shape
    rows = rows_in + 2 * padding[0] - 2
    size = [n + 2 * p - k + 1 for n, p, k in zip(plane, padding[1:], weight.shape[3:], strict=True)]
    result = torch.empty(batch, weight.shape[0], rows, *size, memory_format=torch.channels_last_3d)
    to_tile = torch.tensor(KERNEL_TO_TILE, dtype=torch.float64)
    kernels = torch.einsum("ak,oikyz->aoiyz", to_tile, weight.double()).float()

    def compute(part: Part) -> None:
        start, low = part.start - padding[0], part.low - padding[1]
        stop, high = part.stop - padding[0] + 2, part.high - padding[1] + weight.shape[3] - 1
        tiles = to_tiles(slab[part.sample], Part(part.sample, start, stop, low, high))
        products = [
            torch.mkldnn_convolution(tile, kernel, None, (0, padding[2]), (1, 1), (1, 1), 1)
            for tile, kernel in zip(tiles, kernels, strict=True)
        ]
        from_products(products, bias, result[part.sample, :, part.start : part.stop, part.low : part.high])

    on_chunks(compute, make_parts(batch, rows, size[0], slab[0, :, 0]), slab.device)
    return result


class Part(NamedTuple):
    """What a thread computes at once: rows start..stop and lines low..high of a sample."""

    sample: int
    start: int
    stop: int
    low: int
    high: int


def make_parts(batch: int, rows: int, lines: int, plane: Tensor) -> list[Part]:
    """Parts of four rows or a multiple, small enough for `TILE_BYTES` and enough of them for all threads."""
    num_tiles, threads = -(-rows // 4), torch.get_num_threads()
    tile_bytes = 6 * plane.numel() * plane.element_size()
    tiles = max(1, min(TILE_BYTES // tile_bytes, num_tiles // threads))
    bands = max(1, -(-tile_bytes // TILE_BYTES), -(-threads // num_tiles))
    edges = [lines * i // bands for i in range(bands + 1)]
    return [
        Part(sample, start, min(start + 4 * tiles, rows), low, high)
        for sample in range(batch)
        for start in range(0, rows, 4 * tiles)
        for low, high in pairwise(edges)
        if low < high
    ]


def conv_workspace(
    shape: Sequence[int], weight: Tensor, dtype: torch.dtype, axis: int, stride: int, dilation: int, groups: int
) -> int:
    """Memory that the convolution of a slab of that shape needs besides input and output, for the planner."""
    reordered = weight.numel() * dtype.itemsize
    if len(shape) != 5 or dtype != torch.float32 or stride * dilation * groups > 1 or axis > 2:
        return reordered
    voxels = max(shape[2] - 2, 0) * shape[3] * shape[4]
    if min(weight.shape[:2]) < WIDE or weight.shape[2:4] != (3, 3) or voxels < MANY:
        return reordered
    all_tiles = 6 * -(-(shape[2] - 2) // 4) * shape[1] * shape[3] * shape[4] * dtype.itemsize
    held = min(TILE_BYTES * torch.get_num_threads(), all_tiles)
    return 4 * reordered + held + held * weight.shape[0] // shape[1]


def to_tiles(slab: Tensor, part: Part) -> list[Tensor]:
    """The six combinations of every six rows, a tile starting every four; rows and lines outside are zero."""
    channels, rows, lines, width = slab.shape
    count = -(-(part.stop - part.start - 2) // 4)
    above, below = max(0, -part.low), max(0, part.high - lines)
    low, high = part.low + above, part.high - below
    shape = (count, channels, part.high - part.low, width)
    tiles = [torch.empty(shape, memory_format=torch.channels_last) for _ in range(6)]
    for each in tiles if above or below else []:
        each[:, :, :above].zero_()
        each[:, :, shape[2] - below :].zero_()
    zero = torch.zeros(channels, high - low, width)
    for tile in range(count):
        first = part.start + 4 * tile
        x = [slab[:, row, low:high] if 0 <= row < rows else zero for row in range(first, first + 6)]
        out = [each[tile, :, above : above + high - low] for each in tiles]
        for band in bands(x[0]):
            combine_rows([each[:, band] for each in x], [each[:, band] for each in out])
    return tiles


def combine_rows(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """B^T x of F(4, 3), with what its rows share computed once."""
    even, odd = torch.sub(x[4], x[2], alpha=4), torch.sub(x[3], x[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(x[4], x[2], out=even)
    torch.sub(x[3], x[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    for first, target in ((0, out[0]), (1, out[5])):
        torch.sub(x[first], x[first + 2], out=target)
        target.mul_(4).sub_(x[first + 2]).add_(x[first + 4])


def from_products(products: Sequence[Tensor], bias: Tensor | None, result: Tensor) -> None:
    """A^T m of F(4, 3): four rows of the result for every tile; rows beyond the last are left out."""
    rows = result.shape[1]
    shift = None if bias is None else bias.reshape(-1, 1, 1)
    for tile in range(products[0].shape[0]):
        for band in bands(products[0][0]):
            m = [each[tile, :, band] for each in products]
            sums, differences = (m[1] + m[2], m[3] + m[4]), (m[1] - m[2], m[3] - m[4])
            for i in range(min(4, rows - 4 * tile)):
                out = result[:, 4 * tile + i, band]
                pair = differences if i % 2 else sums
                torch.add(pair[0], pair[1], alpha=2**i, out=out)
                if i in (0, 3):
                    out.add_(m[0] if i == 0 else m[5])
                if shift is not None:
                    out.add_(shift)


def bands(plane: Tensor) -> list[slice]:
    """Lines of a plane (c, lines, width) of which a dozen copies stay in the cache."""
    lines = plane.shape[1]
    height = max(1, BAND_BYTES * lines // max(plane.numel() * plane.element_size(), 1))
    return [slice(low, min(low + height, lines)) for low in range(0, lines, height)]
