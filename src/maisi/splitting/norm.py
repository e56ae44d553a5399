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

from maisi.splitting.parallel import CHUNK_BYTES, on_chunks

CENTRE_BEYOND = 8.0  # |mean| / deviation from which x * scale + shift would lose digits to cancellation


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
    """Moments of a slab (b, c, ...), read a cacheful at a time along `dim`.

    Each chunk is centred by its own channel means before it is squared, so a large mean costs no digits.
    """
    if slab.numel() == 0:
        zero = torch.zeros(slab.shape[0], groups, dtype=torch.float64, device=slab.device)
        return Moments(0, zero, zero)
    if slab.requires_grad:
        return by_group([_of_chunk(slab)], groups)
    return by_group(on_chunks(_of_chunk, cut([slab], dim), slab.device), groups)


def _of_chunk(chunk: Tensor) -> Moments:
    """Moments of every channel, in the chunk's precision but at least float32; the mean is good to more than that."""
    x = chunk if chunk.dtype == torch.float64 else chunk.float()
    axes, count = tuple(range(2, x.dim())), x[0, 0].numel()
    rough = x.mean(axes, keepdim=True).detach()
    deviation = x - rough
    rest = deviation.mean(axes).double()
    squares = deviation * deviation if x.requires_grad else deviation.square_()
    return Moments(count, rough.flatten(1).double() + rest, squares.sum(axes).double() - count * rest.square())


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


def normalise(pieces: Sequence[Tensor], ready: Affine, dim: int, silu: bool) -> Tensor:
    """Adjoining slabs normalised (and activated) into one fresh tensor, a cacheful at a time."""
    first = pieces[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    centre = None if ready.centre is None else ready.centre.to(wide)
    scale, shift = ready.scale.to(wide), ready.shift.to(wide)
    if torch.is_grad_enabled() and (scale.requires_grad or any(piece.requires_grad for piece in pieces)):
        x = torch.cat(list(pieces), dim) if len(pieces) > 1 else first
        y = ((x.to(wide) - (0 if centre is None else centre)) * scale + shift).to(first.dtype)
        return F.silu(y) if silu else y
    result = empty_like_joined(pieces, dim)
    at, places = 0, []
    for piece in pieces:
        places.append(result.narrow(dim, at, piece.shape[dim]))
        at += piece.shape[dim]
    chunks = list(zip(cut(pieces, dim), cut(places, dim), strict=True))
    on_chunks(lambda chunk: _normalise_chunk(*chunk, centre, scale, shift, silu), chunks, result.device)
    return result


def _normalise_chunk(x: Tensor, out: Tensor, centre: Tensor | None, scale: Tensor, shift: Tensor, silu: bool) -> None:
    if x.dtype != scale.dtype:
        x = x.to(scale.dtype)
        y = x if centre is None else x.sub_(centre)
        y = torch.addcmul(shift, y, scale, out=y)
        out.copy_(F.silu(y, inplace=True) if silu else y)
        return
    if centre is not None:
        x = torch.sub(x, centre, out=out)
    torch.addcmul(shift, x, scale, out=out)
    if silu:
        F.silu(out, inplace=True)


def empty_like_joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    """An unwritten tensor as large as the pieces joined, in the memory format of the first."""
    first = pieces[0]
    shape = list(first.shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format(first))


def memory_format(x: Tensor) -> torch.memory_format:
    """The format to write a result in so that it lies as `x` does."""
    if x.dim() == 5 and x.stride(1) == 1 and x.shape[1] > 1:
        return torch.channels_last_3d
    return torch.contiguous_format


def cut(slabs: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Cachefuls of the slabs, cut along `dim` and, where a single row is too large, along another axis."""
    chunks = []
    for slab in slabs:
        each = slab.numel() * slab.element_size() / max(slab.shape[dim], 1)
        rows = slab.split(max(1, int(CHUNK_BYTES / max(each, 1))), dim)
        if each <= CHUNK_BYTES or slab.dim() < 5:
            chunks += rows
        else:
            other = 3 if dim == 2 else 2
            width = max(1, int(slab.shape[other] * CHUNK_BYTES / each))
            chunks += [chunk for row in rows for chunk in row.split(width, other)]
    return chunks
