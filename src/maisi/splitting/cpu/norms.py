"""Moments and normalisation on a CPU: a channels-last slab is read as it lies, by torch's kernels of batch norms."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maisi.splitting import norm
from maisi.splitting.cpu.parallel import CHUNK_BYTES, on_chunks, shared_bytes
from maisi.splitting.norm import CENTRE_BEYOND, Affine, Moments, addcmul, by_group, merge, wide

SUMMED = 512  # numbers that one sum takes up: in float32 more would lose digits
AT_ONCE = 1 << 24  # numbers that are summed in one call


def moments(slab: Tensor, groups: int, dim: int = 2) -> Moments:
    """Moments of a slab (b, c, ...) in the slab's precision, but at least float32; split along `dim`."""
    lines = slab.movedim(1, -1)
    if slab.numel() == 0 or not lines.is_contiguous():
        return norm.moments(slab, groups, dim)
    voxels = lines.flatten(1, -2)
    channels = merge([_of_lines(part) for part in voxels.split(max(1, AT_ONCE // voxels.shape[2]), 1)])
    found = by_group([channels], groups)
    largest = channels.mean.abs().unflatten(1, (groups, -1)).amax(2)
    if bool((largest <= CENTRE_BEYOND * found.variance.sqrt()).all()):
        return found
    rough = channels.mean.to(wide(slab.dtype))
    parts = voxels.split(max(1, CHUNK_BYTES // (voxels.shape[2] * rough.element_size())), 1)
    return by_group([moved(_of_lines(part - rough[:, None]), rough) for part in parts], groups)


def moved(found: Moments, by: Tensor) -> Moments:
    """Moments of the same numbers with something added."""
    return Moments(found.count, found.mean + by, found.m2)


def _of_lines(lines: Tensor) -> Moments:
    """Moments of every channel of (b, voxels, c), read as it lies.

    Every sum takes up `SUMMED` numbers: voxels side by side are summed as if they were more channels, and the few that
    are left by themselves.
    """
    batch, voxels, channels = lines.shape
    beside = max(1, voxels // SUMMED)
    whole = voxels // beside * beside
    parts = [_of_rows(lines[:, :whole].reshape(batch, -1, beside * channels))]
    count, sums = parts[0].count, [value.unflatten(1, (beside, channels)) for value in parts[0][1:]]
    mean = sums[0].mean(1)
    parts = [Moments(beside * count, mean, sums[1].sum(1) + count * (sums[0] - mean[:, None]).square().sum(1))]
    if whole < voxels:
        parts.append(_of_rows(lines[:, whole:]))
    return merge(parts)


def _of_rows(rows: Tensor) -> Moments:
    """Moments of every column of (b, rows, columns): the sum, then the squares of what differs from their mean."""
    zero = torch.zeros(rows.shape[2], dtype=wide(rows.dtype))
    found = [torch.batch_norm_update_stats(sample, zero, zero, 0.0) for sample in rows]
    mean, variance = (torch.stack(values).double() for values in zip(*found, strict=True))
    return Moments(rows.shape[1], mean, variance * rows.shape[1])


def normalise(
    pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Adjoining slabs normalised (and activated) into one fresh tensor, of their `dtype` or another.

    The threads share the cachefuls of all pieces, and join once.
    """
    itemsize = max(pieces[0].dtype.itemsize, (dtype or pieces[0].dtype).itemsize)
    most = shared_bytes(sum(piece.numel() for piece in pieces) * itemsize)
    return norm.normalise(pieces, ready, dim, silu, dtype, scale_and_shift, _shared, most)


def _shared(work: Callable[[Any], None], chunks: list[Any]) -> None:
    on_chunks(work, chunks, torch.device("cpu"))


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """x * scale + shift, both (c, 1, ...), of one sample; torch's norm of known mean and variance is the fastest.

    It is only right where both tensors lie in the same way.
    """
    if not lie_alike(x, out):
        addcmul(x, scale, shift, out)
        return
    zero, none = torch.zeros(x.shape[1], dtype=x.dtype), x.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, scale.flatten(), shift.flatten(), zero, zero + 1, False, 0.0, 0.0, out=out, save_mean=none, save_invstd=none
    )


def lie_alike(x: Tensor, y: Tensor) -> bool:
    """True where both tensors of a shape are dense, and in the same order."""
    formats = (torch.contiguous_format, torch.channels_last_3d)[: 1 + (x.dim() == 5)]
    return any(x.is_contiguous(memory_format=each) and y.is_contiguous(memory_format=each) for each in formats)
