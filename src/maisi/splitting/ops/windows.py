"""Operations with a neighbourhood: convolutions, pooling, padding, interpolation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.arithmetic import Arithmetic, ConvMemory, Where
from maisi.splitting.graph import Interpolated, Node, Pointwise, TransposedConv, Windowed, conv_flops
from maisi.splitting.halo import Magnify, Transposed, Window, through
from maisi.splitting.ops.handlers import Shadow, arithmetic_of, handles, on_meta, only_slab, refuse


def per_axis(value: Any, ndim: int) -> list[int]:
    """One number an axis."""
    return [int(value)] * ndim if isinstance(value, int) else [int(v) for v in value] * (ndim if len(value) == 1 else 1)


def split_axis(name: str, node: Node, ndim: int) -> int:
    """Which spatial axis is split, for an operation on (b, c, *axes)."""
    if len(node.layout.shape) != ndim + 2 or node.layout.dim < 2 or not node.layout.plain:
        raise refuse(name, f"it needs a tensor (b, c, {ndim} axes) that is split along one of the axes, got {node}")
    return node.layout.dim - 2


@handles("conv1d", "conv2d", "conv3d")
def conv(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def parts(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> tuple[Any, ...]:
        return input, weight, bias, stride, padding, dilation, groups

    x, weight, bias, stride, padding, dilation, groups = parts(*args, **kwargs)
    node = only_slab(name, x, weight, bias)
    ndim = int(name[4])
    axis = split_axis(name, node, ndim)
    dtype = arithmetic_of(name, node, weight)
    shadow = Shadow(node.layout.shape, dtype)
    out = on_meta(func, (shadow, weight, bias, stride, padding, dilation, groups), {})
    stride, dilation = per_axis(stride, ndim), per_axis(dilation, ndim)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        if padding == "same" and any(r % 2 for r in reach):
            raise refuse(name, "padding='same' of an even kernel is uneven (use F.pad)")
        padding = [r // 2 for r in reach] if padding == "same" else 0
    padding = per_axis(padding, ndim)
    layout = node.layout.resized(out.shape)
    window = Window(weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])

    def giving(source: Node, result: torch.dtype) -> Windowed:
        def function(slab: Tensor, own_padding: int, on: Arithmetic) -> Tensor:
            pad = [own_padding if i == axis else p for i, p in enumerate(padding)]
            return on.convolve(func, slab, weight, bias, Where(stride, pad, dilation, groups), result)

        def memory(rows: int, on: Arithmetic) -> ConvMemory:
            where = Where(stride, padding, dilation, groups)
            return on.conv_memory(layout.local_shape(rows)[2:], weight, where, (source.dtype, result))

        return Windowed(
            name,
            source,
            layout,
            result,
            through(source.cuts, source.rows, layout.rows),
            window,
            function,
            flops=conv_flops(weight, layout),
            memory=memory,
            products=dtype,
            again=giving,
        )

    return giving(node, node.dtype)


@handles("conv_transpose3d")
def conv_transpose(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def parts(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> tuple[Any, ...]:
        return input, weight, bias, stride, padding, output_padding, groups, dilation

    x, weight, bias, stride, padding, output_padding, groups, dilation = parts(*args, **kwargs)
    node = only_slab(name, x, weight, bias)
    ndim = 3
    axis = split_axis(name, node, ndim)
    dtype = arithmetic_of(name, node, weight)
    shadow = Shadow(node.layout.shape, dtype)
    out = on_meta(func, (shadow, weight, bias, stride, padding, output_padding, groups, dilation), {})
    stride, padding, dilation = per_axis(stride, ndim), per_axis(padding, ndim), per_axis(dilation, ndim)
    extra = per_axis(output_padding, ndim)
    layout = node.layout.resized(out.shape)
    window = Transposed(weight.shape[2 + axis], stride[axis], padding[axis], dilation[axis])
    pad = [0 if i == axis else p for i, p in enumerate(padding)]
    extra = [0 if i == axis else p for i, p in enumerate(extra)]

    def function(slab: Tensor, on: Arithmetic) -> Tensor:
        def apply(slab: Tensor, weight: Tensor) -> Tensor:
            return func(slab, weight, None, stride, pad, extra, groups, dilation)

        return on.transpose_convolve(apply, slab, weight)

    flops = 2 * math.prod(weight.shape[1:]) * math.prod(node.layout.shape)
    cuts = through(node.cuts, node.rows, layout.rows)
    return TransposedConv(node, layout, node.dtype, cuts, window, function, bias, flops)


@handles("avg_pool3d", "max_pool3d")
def pool(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    is_mean = name.startswith("avg")
    names = ["input", "kernel_size", "stride", "padding", *(() if is_mean else ("dilation",)), "ceil_mode"]
    names += ["count_include_pad", "divisor_override"] if is_mean else ["return_indices"]
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given.pop("input"))
    ndim = 3
    axis = split_axis(name, node, ndim)
    kernel = per_axis(given.pop("kernel_size"), ndim)
    stride = per_axis(given.pop("stride", None) or kernel, ndim)
    padding, dilation = per_axis(given.pop("padding", 0), ndim), per_axis(given.pop("dilation", 1), ndim)
    uncounted = any(padding) and not given.get("count_include_pad", True)
    if given.get("ceil_mode") or given.get("return_indices") or uncounted:
        raise refuse(name, "ceil_mode, return_indices and padding that is not counted are not supported")
    out = on_meta(func, args, kwargs)
    layout = node.layout.resized(out.shape)
    window = Window(kernel[axis], stride[axis], padding[axis], dilation[axis])
    options = {"count_include_pad": True, "divisor_override": given.get("divisor_override")} if is_mean else {}
    if not is_mean:
        options["dilation"] = dilation
    blocks = is_mean and kernel == stride and not any(padding) and options["divisor_override"] is None

    def function(slab: Tensor, own_padding: int, on: Arithmetic) -> Tensor:
        pad = [own_padding if i == axis else p for i, p in enumerate(padding)]
        return on.pool(lambda x: func(x, kernel, stride, pad, **options), slab, kernel if blocks else None)

    def memory(rows: int, on: Arithmetic) -> ConvMemory:
        size = layout.local_shape(rows)
        return ConvMemory(on.pool_bytes(size[2:], size[1], kernel, node.dtype), 0)

    cuts = through(node.cuts, node.rows, layout.rows)
    value = 0.0 if is_mean else -math.inf
    known = memory if blocks else None
    return Windowed(name, node, layout, out.dtype, cuts, window, function, pad_value=value, memory=known)


@handles("pad")
def pad(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def parts(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> tuple[Any, ...]:
        return input, list(pad), mode, value or 0.0

    x, amounts, mode, value = parts(*args, **kwargs)
    node = only_slab(name, x)
    out = on_meta(func, args, kwargs)
    at = 2 * (len(node.layout.shape) - 1 - node.layout.dim)
    low, high = amounts[at : at + 2] if at < len(amounts) else (0, 0)
    if (low or high) and (mode != "constant" or not node.layout.plain):
        raise refuse(name, f"mode {mode!r} along the axis that is split is not supported, only 'constant' is")
    others = [0 if at <= i < at + 2 else amount for i, amount in enumerate(amounts)]
    if not (low or high):
        layout = node.layout.moved(out.shape, node.layout.dim)
        return Pointwise(name, [node], layout, out.dtype, lambda inputs, rows: F.pad(inputs[0], others, mode, value))
    layout = node.layout.resized(out.shape)
    cuts = (*(min(cut, layout.rows) for cut in node.cuts[:-1]), layout.rows)

    def function(slab: Tensor, own_padding: int, on: Arithmetic) -> Tensor:
        return F.pad(slab, others, mode, value) if any(others) else slab

    padded = Windowed(name, node, layout, out.dtype, cuts, Window(1, 1, low), function, pad_value=value)
    padded.view = not any(others)
    return padded


@handles("interpolate", "upsample")
def interpolate(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given.pop("input"))
    out = on_meta(F.interpolate, (), {"input": args[0] if args else kwargs["input"], **given})
    ndim = out.dim() - 2
    axis = split_axis(name, node, ndim)
    rows = out.shape[node.layout.dim]
    mode = given.get("mode", "nearest")
    linear = mode in ("linear", "bilinear", "trilinear")
    if not linear and mode not in ("nearest", "nearest-exact"):
        raise refuse(name, f"mode {mode!r} is not supported, only nearest and linear ones are")
    if rows % node.rows or given.get("antialias") or (given.get("align_corners") and rows != node.rows):
        why = "only whole multiples without aligned corners are supported"
        raise refuse(name, f"from {node.rows} to {rows} rows: {why}")
    layout = node.layout.resized(out.shape)
    magnify = Magnify(rows // node.rows, linear and rows != node.rows)
    size = given.get("size")

    def function(slab: Tensor) -> Tensor:
        if size is None:
            return F.interpolate(slab, **given)
        local = per_axis(size, ndim)
        local[axis] = magnify.factor * slab.shape[2 + axis]
        return F.interpolate(slab, **(given | {"size": local}))

    return Interpolated(node, layout, through(node.cuts, node.rows, rows), magnify, function)
