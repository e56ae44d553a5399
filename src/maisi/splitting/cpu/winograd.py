"""A 3 x 3 x n convolution with a quarter of the multiplications, on the CPU; of bfloat16 slabs too, in float32.

Winograd's minimal filtering F(4, 3) along the first two spatial axes (Lavin & Gray, "Fast algorithms for convolutional
neural networks", 2016): 4 x 4 lines of the result come from 6 x 6 products of transformed lines with transformed
weights instead of 4 x 4 x 9. The polynomials are interpolated at 0, +-sqrt(1/2), +-sqrt(2) and infinity, which keeps
all coefficients near one: the result is nearer to the exact one than with the usual integers by a factor of five.
"""

import math
from collections.abc import Sequence
from itertools import product
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from maisi.splitting.cpu.parallel import on_chunks

OUTPUTS, TAPS = 4, 3
POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2.0), -math.sqrt(2.0))
TILE = OUTPUTS + TAPS - 1
WORKSPACE_BYTES = 10 << 20  # transformed lines and products that a thread holds at once


def minimal_filtering(points: Sequence[float], outputs: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices (A, G, B) of y = A ((G g) * (B x)), a filter g of so many taps giving so many outputs; float64.

    Toom-Cook interpolation at the points and at infinity; `len(points)` must be `outputs + taps - 2`.
    """
    size = len(points) + 1
    to_outputs, to_filter, to_tile = (torch.zeros(n, size, dtype=torch.float64) for n in (outputs, taps, size))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        powers = torch.tensor([point**k for k in range(max(outputs, taps))], dtype=torch.float64)
        to_outputs[:, i] = powers[:outputs]
        to_filter[:, i] = powers[:taps] / math.prod(point - other for other in others)
        to_tile[: size - 1, i] = polynomial(others)
    to_outputs[-1, -1] = to_filter[-1, -1] = 1.0
    to_tile[:, -1] = polynomial(points)
    return to_outputs, to_filter.T.contiguous(), to_tile.T.contiguous()


def polynomial(roots: Sequence[float]) -> Tensor:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        times_x = torch.nn.functional.pad(coefficients, (1, 0))
        times_x[:-1] -= root * coefficients
        coefficients = times_x
    return coefficients


TO_OUTPUTS, TO_FILTER, TO_TILE = minimal_filtering(POINTS, OUTPUTS, TAPS)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The number format that slabs of a dtype are transformed and multiplied in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def transform_weight(weight: Tensor) -> Tensor:
    """Weights (o, c, 3, 3, n) as a (c, o) matrix for each of the n taps and the 36 products: (n, 36, c, o)."""
    out_channels, in_channels, _, _, depth = weight.shape
    g = TO_FILTER.to(arithmetic(weight.dtype))
    lines = weight.permute(2, 3, 4, 1, 0).to(g.dtype).reshape(TAPS, -1)
    rows = (g @ lines).view(TILE, TAPS, -1)
    both = torch.matmul(g, rows).view(TILE * TILE, depth, in_channels, out_channels)
    return both.transpose(0, 1)


def transformed_bytes(weight: Tensor) -> int:
    """Size of what `transform_weight` gives."""
    return weight.numel() * arithmetic(weight.dtype).itemsize * TILE * TILE // TAPS**2


def workspace_bytes(plane: Sequence[int], weight: Tensor, padding: int) -> int:
    """What the threads hold for results of so many lines, and an input so wide."""
    tiles = tiles_at_once(plane, weight, padding)
    return torch.get_num_threads() * tiles * tile_bytes(plane[1], weight, padding)


def tile_bytes(width: int, weight: Tensor, padding: int) -> int:
    """What a tile of 4 x 4 lines takes: lines transformed once and twice, products, rows of the result."""
    out_channels, in_channels = weight.shape[:2]
    numbers = 2 * TILE * TILE * in_channels + TILE * (TILE + OUTPUTS) * out_channels
    return numbers * (width + 2 * padding) * arithmetic(weight.dtype).itemsize


def tiles_at_once(plane: Sequence[int], weight: Tensor, padding: int) -> int:
    """Tiles side by side that a thread works on."""
    lines, width = plane
    return max(1, min(WORKSPACE_BYTES // tile_bytes(width, weight, padding), -(-lines // OUTPUTS)))


class Workspace:
    """The memory of one thread for tiles side by side, used again for all of its tiles."""

    def __init__(self, tiles: int, width: int, transformed: Tensor, padding: int) -> None:
        self.depth, _, in_channels, out_channels = transformed.shape
        self.tiles, self.padding, self.line = tiles, padding, width + 2 * padding
        voxels = tiles * self.line
        dtype = transformed.dtype
        self.lines = torch.zeros(TILE, TILE, voxels, in_channels, dtype=dtype)  # padding stays zero
        self.both = torch.empty(TILE, TILE, voxels, in_channels, dtype=dtype)
        self.products = torch.empty(TILE * TILE, voxels - self.depth + 1, out_channels, dtype=dtype)
        self.rows = torch.empty(OUTPUTS, TILE, voxels - self.depth + 1, out_channels, dtype=dtype)


class TilePlace(NamedTuple):
    """Where tiles begin in the result."""

    sample: int
    row: int
    line: int


def winograd(slab: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], transformed: Tensor) -> Tensor:
    """The convolution of (b, c, x, y, z), channels last, with (o, c, 3, 3, n), transformed by `transform_weight`."""
    batch, _, *size = slab.shape
    rows, lines, width = (n + 2 * p - k + 1 for n, p, k in zip(size, padding, weight.shape[2:], strict=True))
    result = torch.empty(
        batch, weight.shape[0], rows, lines, width, dtype=slab.dtype, memory_format=torch.channels_last_3d
    )
    source, target = slab.permute(0, 2, 3, 4, 1), result.permute(0, 2, 3, 4, 1)
    tiles = tiles_at_once((lines, size[2]), weight, padding[2])
    places = [TilePlace(*at) for at in product(range(batch), range(0, rows, OUTPUTS), range(0, lines, OUTPUTS * tiles))]
    spaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(min(torch.get_num_threads(), len(places))):
        spaces.put(Workspace(tiles, size[2], transformed, padding[2]))
    to_tile, to_outputs = TO_TILE.to(transformed.dtype), TO_OUTPUTS.to(transformed.dtype)

    def fill(place: TilePlace) -> None:
        space = spaces.get()
        try:
            transform(source, place, padding, to_tile, space)
            multiply(space, transformed)
            assemble(space, to_outputs, bias, place, target)
        finally:  # the other threads wait for it, also after an error
            spaces.put(space)

    on_chunks(fill, places, slab.device)
    return result


def transform(source: Tensor, place: TilePlace, padding: Sequence[int], to_tile: Tensor, space: Workspace) -> None:
    """Lines of a channels-last slab (b, x, y, z, c) transformed along y, then x; those outside of it are zero."""
    first, size, width = place.row - padding[0], source.shape[1:3], source.shape[3]
    low, high = inside(first, size[0])
    for i in range(low, high):
        for tile in range(space.tiles):
            begin = place.line + OUTPUTS * tile - padding[1]
            left, right = inside(begin, size[1])
            at = tile * space.line + space.padding
            into = space.lines[i, :, at : at + width].flatten(1)
            if left < right:
                lines = source[place.sample, first + i, begin + left : begin + right].flatten(1).to(to_tile.dtype)
                torch.mm(to_tile[:, left:right], lines, out=into)
            else:
                into.zero_()
    torch.mm(to_tile[:, low:high], space.lines[low:high].flatten(1), out=space.both.flatten(1))


def inside(begin: int, size: int) -> tuple[int, int]:
    """Which of the lines of a tile that begins there exist."""
    low = min(max(0, -begin), TILE)
    return low, max(low, min(TILE, size - begin))


def multiply(space: Workspace, transformed: Tensor) -> None:
    """All 36 products, summed over the channels and the taps along z."""
    both, count = space.both.flatten(0, 1), space.products.shape[1]
    torch.bmm(both[:, :count], transformed[0], out=space.products)
    for tap in range(1, space.depth):
        torch.baddbmm(space.products, both[:, tap : tap + count], transformed[tap], out=space.products)


def assemble(space: Workspace, to_outputs: Tensor, bias: Tensor | None, place: TilePlace, target: Tensor) -> None:
    """The products transformed back along x, then y, into a channels-last result (b, x, y, z, o)."""
    torch.mm(to_outputs, space.products.view(TILE, -1), out=space.rows.view(OUTPUTS, -1))
    num_rows, num_lines, width = target.shape[1:4]
    for i in range(min(OUTPUTS, num_rows - place.row)):
        for tile in range(space.tiles):
            line = place.line + OUTPUTS * tile
            count = min(OUTPUTS, num_lines - line)
            if count > 0:
                at = tile * space.line
                into = target[place.sample, place.row + i, line : line + count]
                products = space.rows[i, :, at : at + width].flatten(1)
                is_wider = products.dtype != into.dtype
                found = torch.mm(to_outputs[:count], products, out=None if is_wider else into.flatten(1)).view_as(into)
                if bias is not None:
                    found.add_(bias)
                if is_wider:  # rounded once
                    into.copy_(found)
