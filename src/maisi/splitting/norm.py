"""Group normalisation of a tensor that is never whole: moments merged exactly, applied when a slab is read.

Moments are (count, mean, M2) with M2 the sum of squared deviations, merged in float64 by the pairwise update of Chan,
Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979. Averaging the slabs'
variances, or E[x^2] - E[x]^2, is wrong on data with a step along the split axis, respectively with a large mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.cpu.parallel import CHUNK_BYTES, on_chunks, shared_bytes

CENTRE_BEYOND = 8.0  # |mean| / deviation from which sums, and x * scale + shift, would lose digits to cancellation
SUMMED = 512  # numbers that one sum takes up: in float32 more would lose digits
AT_ONCE = 1 << 24  # numbers that are summed in one call


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of every (sample, group); float64, mean and M2 of shape (b, groups)."""

    count: int  # type: ignore[assignment]  # tuple's method of that name is not used
    mean: Tensor
    m2: Tensor

    @property
    def variance(self) -> Tensor:
        """Biased variance, as normalisation uses it."""
        return self.m2 / max(self.count, 1)


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of disjoint parts, in the order given (so every rank gets the same bits).

    The update of Chan et al. for many parts at once: M2 = sum M2_i + sum n_i (mean_i - mean)^2.
    """
    filled = [part for part in parts if part.count]
    if len(filled) < 2:
        return (filled or list(parts))[0]
    total = sum(part.count for part in filled)
    mean, m2 = torch.stack([part.mean for part in filled]), torch.stack([part.m2 for part in filled])
    counts = torch.tensor([part.count for part in filled], dtype=torch.float64, device=mean.device)[:, None, None]
    joint = (mean * (counts / total)).sum(0)
    return Moments(total, joint, m2.sum(0) + (counts * (mean - joint).square()).sum(0))


def moments(slab: Tensor, groups: int, dim: int = 2) -> Moments:
    """Moments of a slab (b, c, ...) in the slab's precision, but at least float32; split along `dim`."""
    if slab.numel() == 0:
        zero = torch.zeros(slab.shape[0], groups, dtype=torch.float64, device=slab.device)
        return Moments(0, zero, zero)
    if torch.is_grad_enabled() and slab.requires_grad:
        return by_group([_centred(slab)], groups)
    lines = slab.movedim(1, -1)
    if slab.device.type != "cpu" or not lines.is_contiguous():
        return by_group([_centred(chunk) for chunk in cut(slab, dim)], groups)
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


def _centred(chunk: Tensor) -> Moments:
    """Moments of every channel, centred by its own mean before it is squared: a large mean costs no digits."""
    x = chunk.to(wide(chunk.dtype))
    axes, count = tuple(range(2, x.dim())), x[0, 0].numel()
    rough = x.mean(axes, keepdim=True).detach()
    deviation = x - rough
    rest = deviation.mean(axes).double()
    squares = deviation * deviation if x.requires_grad else deviation.square_()
    return Moments(count, rough.flatten(1).double() + rest, squares.sum(axes).double() - count * rest.square())


def wide(dtype: torch.dtype) -> torch.dtype:
    """The number format that statistics of a slab are computed in."""
    return torch.promote_types(dtype, torch.float32)


def by_group(parts: Sequence[Moments], groups: int) -> Moments:
    """Moments of chunks' channels joined over the channels of a group."""
    channels = merge(parts)
    mean, m2 = (value.unflatten(1, (groups, -1)) for value in (channels.mean, channels.m2))
    joint = mean.mean(2)
    between = channels.count * (mean - joint[..., None]).square().sum(2)
    return Moments(channels.count * mean.shape[2], joint, m2.sum(2) + between)


class Affine(NamedTuple):
    """A normalisation made ready: y = (x - centre) * scale + shift for every (sample, channel); centre None is zero."""

    centre: Tensor | None
    scale: Tensor
    shift: Tensor


def affine(stats: Moments, weight: Tensor | None, bias: Tensor | None, eps: float, channels: int, ndim: int) -> Affine:
    """What to multiply and add, in float64, shaped to broadcast over a slab of `ndim` dimensions."""
    each = channels // stats.mean.shape[1]
    rstd = (stats.variance + eps).rsqrt()
    cancels = bool(((stats.mean.abs() * rstd).amax() > CENTRE_BEYOND).item()) if stats.count else False
    mean, scale = (value.repeat_interleave(each, dim=1) for value in (stats.mean, rstd))
    if weight is not None:
        scale = scale * weight.double()
    shift = torch.zeros_like(scale) if bias is None else bias.double().expand_as(scale)
    shape = (*scale.shape, *[1] * (ndim - 2))
    if cancels:
        centre = mean.detach().float().double()  # what a float32 can hold of the mean; the shift takes the rest
        return Affine(centre.reshape(shape), scale.reshape(shape), (shift - (mean - centre) * scale).reshape(shape))
    return Affine(None, scale.reshape(shape), (shift - mean * scale).reshape(shape))


def normalise(
    pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Adjoining slabs normalised (and activated) into one fresh tensor, of their `dtype` or another, in cachefuls."""
    first = pieces[0]
    dtype = dtype or first.dtype
    ready = Affine(*(None if value is None else value.to(wide(first.dtype)) for value in ready))  # type: ignore[arg-type]
    if torch.is_grad_enabled() and (ready.scale.requires_grad or any(piece.requires_grad for piece in pieces)):
        x = torch.cat(list(pieces), dim) if len(pieces) > 1 else first
        y = ((x.to(ready.scale.dtype) - (0 if ready.centre is None else ready.centre)) * ready.scale + ready.shift).to(
            dtype
        )
        return F.silu(y) if silu else y
    result = empty_like_joined(pieces, dim, dtype)
    at, itemsize = 0, max(first.dtype.itemsize, dtype.itemsize)
    most, chunks = shared_bytes(result.numel() * itemsize), []
    for piece in pieces:
        place = result.narrow(dim, at, piece.shape[dim])
        at += piece.shape[dim]
        for i in range(piece.shape[0]):
            one = Affine(*(value if value is None else value[min(i, len(value) - 1)] for value in ready))  # type: ignore[arg-type]
            here, there = (cut(x[i : i + 1], dim, itemsize, most) for x in (piece, place))
            chunks += [(x, out, one) for x, out in zip(here, there, strict=True)]
    on_chunks(lambda chunk: _normalise_chunk(*chunk, silu), chunks, first.device)
    return result


def _normalise_chunk(x: Tensor, out: Tensor, ready: Affine, silu: bool) -> None:
    """One sample's chunk; rounded once where its precision is lower than that of the statistics."""
    y = x.to(ready.scale.dtype)
    target = out if y.dtype == out.dtype else y
    if ready.centre is not None:
        y = torch.sub(y, ready.centre, out=target)
    scale_and_shift(y, ready.scale, ready.shift, target)
    if silu:
        F.silu(target, inplace=True)
    if target is not out:
        out.copy_(target)


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """x * scale + shift, both (c, 1, ...), of one sample; torch's norm of known mean and variance is the fastest.

    It is only right where both tensors lie in the same way.
    """
    if x.device.type != "cpu" or not lie_alike(x, out):
        torch.addcmul(shift, x, scale, out=out)
        return
    zero, none = torch.zeros(x.shape[1], dtype=x.dtype), x.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, scale.flatten(), shift.flatten(), zero, zero + 1, False, 0.0, 0.0, out=out, save_mean=none, save_invstd=none
    )


def empty_like_joined(pieces: Sequence[Tensor], dim: int, dtype: torch.dtype) -> Tensor:
    """An unwritten tensor as large as the pieces joined, in the memory format of the first."""
    first = pieces[0]
    shape = list(first.shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    return torch.empty(shape, dtype=dtype, device=first.device, memory_format=memory_format(first))


def memory_format(x: Tensor) -> torch.memory_format:
    """The format to write a result in so that it lies as `x` does."""
    if x.dim() == 5 and x.stride(1) == 1 and x.shape[1] > 1:
        return torch.channels_last_3d
    return torch.contiguous_format


def lie_alike(x: Tensor, y: Tensor) -> bool:
    """True where both tensors of a shape are dense, and in the same order."""
    formats = (torch.contiguous_format, torch.channels_last_3d)[: 1 + (x.dim() == 5)]
    return any(x.is_contiguous(memory_format=each) and y.is_contiguous(memory_format=each) for each in formats)


def cut(slab: Tensor, dim: int, itemsize: int | None = None, most: int = CHUNK_BYTES) -> list[Tensor]:
    """Cachefuls of a slab, of so many bytes a number: some rows along `dim` or, where one is too large, parts of it."""
    each = slab.numel() * (itemsize or slab.element_size()) / max(slab.shape[dim], 1)
    rows = list(slab.split(max(1, int(most / max(each, 1))), dim))
    if each <= most or slab.dim() < 5:
        return rows
    other = 3 if dim == 2 else 2
    width = max(1, int(slab.shape[other] * most / each))
    return [chunk for row in rows for chunk in row.split(width, other)]
