"""Group normalisation of a tensor that is never whole: moments merged exactly, applied when a slab is read.

Moments are (count, mean, M2) with M2 the sum of squared deviations, merged in float64 by the pairwise update of Chan,
Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979. Averaging the slabs'
variances, or E[x^2] - E[x]^2, is wrong on data with a step along the split axis, respectively with a large mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CENTRE_BEYOND = 8.0  # |mean| / deviation from which sums, and x * scale + shift, would lose digits to cancellation
CHUNK_BYTES = 2 << 20  # of a slab that are worked on at once; stays in a core's cache


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
        return no_moments(slab.shape[0], groups, slab.device)
    chunks = [slab] if torch.is_grad_enabled() and slab.requires_grad else cut(slab, dim)
    return by_group([_centred(chunk) for chunk in chunks], groups)


def no_moments(batch: int, groups: int, device: torch.device) -> Moments:
    """Moments of no numbers."""
    zero = torch.zeros(batch, groups, dtype=torch.float64, device=device)
    return Moments(0, zero, zero)


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
    is_host = stats.mean.device.type == "cpu"  # a GPU would have to be waited for; centring is right for any mean
    cancels = stats.count > 0 and (not is_host or bool((stats.mean.abs() * rstd).amax() > CENTRE_BEYOND))
    mean, scale = (value.repeat_interleave(each, dim=1) for value in (stats.mean, rstd))
    if weight is not None:
        scale = scale * weight.double()
    shift = torch.zeros_like(scale) if bias is None else bias.double().expand_as(scale)
    shape = (*scale.shape, *[1] * (ndim - 2))
    if cancels:
        centre = mean.detach().float().double()  # what a float32 can hold of the mean; the shift takes the rest
        return Affine(centre.reshape(shape), scale.reshape(shape), (shift - (mean - centre) * scale).reshape(shape))
    return Affine(None, scale.reshape(shape), (shift - mean * scale).reshape(shape))


ScaleAndShift = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # x * scale + shift of one sample, into the last


def addcmul(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """x * scale + shift, both (c, 1, ...), of one sample."""
    torch.addcmul(shift, x, scale, out=out)


Share = Callable[[Callable[[Any], None], list[Any]], None]  # sees to it that a function is called on every chunk


def in_turn(work: Callable[[Any], None], chunks: list[Any]) -> None:
    """Every chunk, one after the other."""
    for chunk in chunks:
        work(chunk)


def normalise(
    pieces: Sequence[Tensor],
    ready: Affine,
    dim: int,
    silu: bool,
    dtype: torch.dtype | None = None,
    scale_and_shift: ScaleAndShift = addcmul,
    share: Share = in_turn,
    most: int = CHUNK_BYTES,
) -> Tensor:
    """Adjoining slabs normalised (and activated) into one fresh tensor, of their `dtype` or another.

    The work is cut into cachefuls of at most so many bytes; `share` sees to them.
    """
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
    chunks: list[tuple[Tensor, Tensor, Affine]] = []
    for piece in pieces:
        place = result.narrow(dim, at, piece.shape[dim])
        at += piece.shape[dim]
        for i in range(piece.shape[0]):
            one = Affine(*(value if value is None else value[min(i, len(value) - 1)] for value in ready))  # type: ignore[arg-type]
            here, there = (cut(x[i : i + 1], dim, itemsize, most) for x in (piece, place))
            chunks += [(x, out, one) for x, out in zip(here, there, strict=True)]

    def fill(chunk: tuple[Tensor, Tensor, Affine]) -> None:
        x, out, one = chunk
        _normalise_chunk(x, out, one, silu, scale_and_shift)

    share(fill, chunks)
    return result


def _normalise_chunk(x: Tensor, out: Tensor, ready: Affine, silu: bool, scale_and_shift: ScaleAndShift) -> None:
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


def cut(slab: Tensor, dim: int, itemsize: int | None = None, most: int = CHUNK_BYTES) -> list[Tensor]:
    """Cachefuls of a slab, of so many bytes a number: some rows along `dim` or, where one is too large, parts of it."""
    each = slab.numel() * (itemsize or slab.element_size()) / max(slab.shape[dim], 1)
    rows = list(slab.split(max(1, int(most / max(each, 1))), dim))
    if each <= most or slab.dim() < 5:
        return rows
    other = 3 if dim == 2 else 2
    width = max(1, int(slab.shape[other] * most / each))
    return [chunk for row in rows for chunk in row.split(width, other)]
