"""A 3 x 3 x 3 convolution in float32 with a sixth of the multiplications, by a kernel of our own where it was built.

As in `winograd`, with F(2, 3) along the third axis besides, and with all that is in between in a core's cache: the
sources are in `native/`. Without a C compiler at installation there is no kernel, and `winograd` does the work.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.cpu.parallel import on_chunks
from maisi.splitting.cpu.winograd import OUTPUTS, TAPS, TILE, TO_FILTER, minimal_filtering

try:
    from maisi.splitting.cpu import _filtering
except ImportError:  # no compiler when it was installed
    _filtering: Any = None  # type: ignore[no-redef]

PRODUCTS = 4 * TILE * TILE  # of a tile
CHANNELS = 16  # the numbers of channels are multiples of it
MOST_PAIRS = 16  # of voxels along z in a block
TILES_AIM = 32  # tiles of a block: enough for the weights to be read once for many
RANGES_A_THREAD = 8  # of blocks: the threads of a busy machine end at different times
TO_PAIR_FILTER = minimal_filtering((0.0, 1.0, -1.0), 2, 3)[1]


@cache
def instruction_set() -> str:
    """The best of this processor that the kernel was built for; empty where it was not built."""
    return next(iter(_filtering.instruction_sets())) if _filtering is not None else ""


def serves(weight: Tensor) -> bool:
    """True for weights (o, c, 3, 3, 3) that the kernel was built for."""
    fits = tuple(weight.shape[2:]) == (TAPS,) * 3 and max(n % CHANNELS for n in weight.shape[:2]) == 0
    return fits and instruction_set() != ""


def panel() -> int:
    """Output channels of a panel of weights."""
    return _filtering.instruction_sets()[instruction_set()]


def width(weight: Tensor) -> int:
    """Output channels, filled up to whole panels."""
    return -(-weight.shape[0] // panel()) * panel()


def pack_weight(weight: Tensor) -> Tensor:
    """Weights (o, c, 3, 3, 3) in float32 for each of the 144 products, in panels: (144, o / panel, c, panel)."""
    to_filter = torch.kron(torch.kron(TO_FILTER, TO_FILTER), TO_PAIR_FILTER).float()
    packed = weight.new_empty(packed_shape(weight), dtype=torch.float32)

    def pack(i: int) -> None:
        part = weight.detach()[i * panel() : (i + 1) * panel()].permute(2, 3, 4, 1, 0)
        lines = packed.new_zeros(TAPS, TAPS, TAPS, weight.shape[1], panel())
        lines[..., : part.shape[-1]] = part
        torch.mm(to_filter, lines.view(TAPS**3, -1), out=packed[:, i].flatten(1))

    on_chunks(pack, range(packed.shape[1]), weight.device)
    return packed


def packed_shape(weight: Tensor) -> tuple[int, int, int, int]:
    """Of what `pack_weight` gives."""
    return PRODUCTS, width(weight) // panel(), weight.shape[1], panel()


def packed_bytes(weight: Tensor) -> int:
    """Size of what `pack_weight` gives."""
    return 4 * math.prod(packed_shape(weight))


def packing_bytes(weight: Tensor) -> int:
    """What `pack_weight` holds besides its result."""
    at_once = max(3, min(torch.get_num_threads(), packed_shape(weight)[1]))
    return at_once * 4 * TAPS**3 * weight.shape[1] * panel()


def block_of(size: Sequence[int]) -> tuple[int, int]:
    """Tiles along y and pairs along z that are worked on at once, for a result of (y, z) voxels."""
    pairs = shared_out(-(-size[1] // 2), MOST_PAIRS)
    return shared_out(-(-size[0] // OUTPUTS), max(1, TILES_AIM // pairs)), pairs


def shared_out(count: int, most: int) -> int:
    """The size of equal shares, none above `most`."""
    return -(-count // -(-count // most))


def workspace_bytes(size: Sequence[int], weight: Tensor) -> int:
    """What the threads hold for a result of (y, z) voxels."""
    return torch.get_num_threads() * 4 * _filtering.workspace_numbers(weight.shape[1], width(weight), *block_of(size))


def convolve(slab: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], packed: Tensor) -> Tensor:
    """The convolution of a float32 slab (b, c, x, y, z), channels last, with weights packed by `pack_weight`.

    Raises `ValueError` for anything else: the kernel sees addresses only, and would read beyond an end.
    """
    out_channels, in_channels = weight.shape[:2]
    size, after = slab.shape[2:], tuple(n + 2 * p - TAPS + 1 for n, p in zip(slab.shape[2:], padding, strict=True))
    added = slab.new_zeros(out_channels) if bias is None else bias.float().contiguous()
    formats, shapes = {slab.dtype, packed.dtype}, (slab.shape[1], added.shape, packed.shape)
    if formats != {torch.float32} or shapes != (in_channels, (out_channels,), packed_shape(weight)) or min(after) < 1:
        raise ValueError(
            f"{slab.dtype} slab {tuple(slab.shape)}, {packed.dtype} weights {tuple(packed.shape)}, bias "
            f"{tuple(added.shape)}, giving {after} voxels; accepted: float32, {in_channels} channels, weights "
            f"{packed_shape(weight)}, bias ({out_channels},), at least one voxel"
        )
    source, packed = slab.contiguous(memory_format=torch.channels_last_3d), packed.contiguous()
    result = slab.new_empty(slab.shape[0], *after, out_channels).permute(0, 4, 1, 2, 3)
    block, channels = block_of(after[1:]), (in_channels, out_channels, width(weight))
    steps = OUTPUTS, OUTPUTS * block[0], 2 * block[1]
    count = math.prod(-(-n // step) for n, step in zip(after, steps, strict=True))  # blocks of a sample
    threads = max(1, min(torch.get_num_threads(), len(source) * count))
    spaces: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(threads):
        spaces.put(slab.new_empty(_filtering.workspace_numbers(in_channels, width(weight), *block)))

    def fill(job: tuple[int, tuple[int, int]]) -> None:
        sample, blocks = job
        space = spaces.get()
        try:
            addresses = tuple(t.data_ptr() for t in (source[sample], packed, added, result[sample], space))
            _filtering.filter_blocks(instruction_set(), addresses, size, after, tuple(padding), channels, block, blocks)
        finally:  # the other threads wait for it, also after an error
            spaces.put(space)

    ranges = min(count, RANGES_A_THREAD * threads)
    cuts = [count * i // ranges for i in range(ranges + 1)]
    on_chunks(fill, list(product(range(len(source)), pairwise(cuts))), slab.device)
    return result
