"""The operations that a `SlabTensor` understands, by the names that torch gives them.

Each handler turns a call into a deferred `Node`. Shapes and errors come from running the call on meta tensors, so a
mistake is reported as torch reports it. What cannot be done slab by slab raises `UnsupportedOperationError`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.errors import UnsupportedOperationError
from maisi.splitting.cpu import kernels
from maisi.splitting.cpu.filters import filter_of
from maisi.splitting.graph import (
    Interpolated,
    Leaf,
    MomentsOf,
    Node,
    Normalised,
    Pointwise,
    TransposedConv,
    Whole,
    Windowed,
    conv_flops,
    silu_into,
)
from maisi.splitting.halo import Magnify, Transposed, Window, through


class Deferred(Tensor):
    """What handlers see of a `SlabTensor`: its node, and the row dimension that it began with."""

    node: Node
    home: int


Handler = Callable[..., Any]  # (func, wrap, *args, **kwargs) -> node, or a tuple of nodes
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler under the names of torch functions and tensor methods."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def refuse(name: str, why: str) -> UnsupportedOperationError:
    """The one message for what cannot be done, with what to do instead."""
    return UnsupportedOperationError(
        f"{name} cannot be carried out slab by slab: {why}; call .gather() before it and go on with the whole tensor"
    )


# --- the call as data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """Place of the n-th split tensor in the arguments of a call."""

    index: int


def walk(value: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from walk(item)
    elif isinstance(value, dict):
        yield from walk(list(value.values()))
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dicts with every leaf replaced; a shape (`torch.Size`) is a leaf."""
    if isinstance(value, torch.Size):
        return function(value)
    if isinstance(value, (tuple, list)):
        items = [mapped(function, item) if isinstance(item, (tuple, list, dict)) else function(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: mapped(function, item) for key, item in value.items()}
    return function(value)


@dataclass(frozen=True)
class Shadow:
    """What is known of a tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Question:
    """A call on shadows; two are the same where the answer must be."""

    key: Any
    func: Callable[..., Any] = field(compare=False)
    call: Any = field(compare=False)


def on_meta(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call on tensors without data: gives the global shape and dtype of the result, and torch's own errors."""

    def shadow(value: Any) -> Any:
        if isinstance(value, Deferred):
            return Shadow(value.node.layout.shape, value.node.dtype)
        if isinstance(value, Tensor) and value.dim():
            return Shadow(tuple(value.shape), value.dtype)
        return value

    call = mapped(shadow, (args, kwargs))
    question = Question((func, named(call)), func, call)
    try:
        return answer(question)
    except TypeError:  # an argument without hash, a slice say; torch's own TypeErrors are raised again
        return answer.__wrapped__(question)


@lru_cache(maxsize=4096)  # a sampling loop asks the same at every step, and torch answers some in half a millisecond
def answer(question: Question) -> Any:
    """The result of a call on shadows, without data."""

    def tensor(value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Shadow) else value

    args, kwargs = mapped(tensor, question.call)
    with torch.no_grad():
        return question.func(*args, **kwargs)


def named(value: Any) -> Any:
    """Nested arguments as something to compare: 2, 2.0 and True differ, single numbers in tensors do not matter."""
    if isinstance(value, (list, tuple)):
        return type(value), *map(named, value)
    if isinstance(value, dict):
        return dict, *((key, named(item)) for key, item in value.items())
    if isinstance(value, Tensor):
        return Tensor, value.dtype, value.device
    return type(value), value


def split_inputs(call: Any) -> tuple[list[Deferred], Any]:
    """The split tensors of a call, and the call with slots in their places."""
    slabs: list[Deferred] = []

    def slot(value: Any) -> Any:
        if isinstance(value, Deferred):
            slabs.append(value)
            return Slot(len(slabs) - 1)
        return value

    return slabs, mapped(slot, call)


def filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    """The call with tensors in its slots."""
    return mapped(lambda value: tensors[value.index] if isinstance(value, Slot) else value, template)


def only_slab(name: str, x: Any, *others: Any) -> Node:
    """The node of the first argument; refuses split weights and masks."""
    if not isinstance(x, Deferred) or any(isinstance(value, Deferred) for value in walk(others)):
        raise refuse(name, "only its first argument may be split")
    return x.node


def same_rows(name: str, nodes: Sequence[Node]) -> None:
    """Refuses tensors that are split along different axes."""
    first = nodes[0].layout
    for node in nodes[1:]:
        theirs = node.layout
        if (theirs.from_right, theirs.rows, theirs.before, theirs.after) != (
            first.from_right,
            first.rows,
            first.before,
            first.after,
        ):
            raise refuse(name, f"its arguments are split differently ({nodes[0]} and {node})")


# --- pointwise --------------------------------------------------------------------------------------------------------

ELEMENTWISE = [
    "add", "sub", "subtract", "rsub", "__rsub__", "mul", "multiply", "div", "divide", "true_divide", "__rdiv__",
    "__rtruediv__", "__rpow__", "neg", "negative", "abs", "absolute", "exp", "expm1", "log", "log1p", "log2",
    "sqrt", "rsqrt", "square", "pow", "sigmoid", "logsigmoid", "tanh", "tanhshrink", "silu", "mish", "gelu", "relu",
    "relu6", "leaky_relu", "elu", "selu", "celu", "softplus", "softsign", "hardswish", "hardsigmoid", "hardtanh",
    "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "where", "sin", "cos", "erf", "sign",
    "reciprocal", "round", "floor", "ceil", "lerp", "addcmul", "addcdiv", "to", "float", "double", "half",
    "bfloat16", "type", "type_as", "clone", "detach", "alias", "nan_to_num", "threshold", "isnan",
    "isfinite", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or", "fmod", "remainder",
]  # fmt: skip
CONVERSIONS = ("to", "type", "type_as", "float", "half", "bfloat16")
HALF = (torch.float16, torch.bfloat16)
INTO: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch, name)
    for name in ("add", "sub", "mul", "div", "sigmoid", "tanh", "neg", "exp", "clamp", "square", "sqrt")
}


@handles(*ELEMENTWISE)
def elementwise(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("inplace", "memory_format")}
    if (
        name == "to" and len(args) == 1 and not kwargs
    ):  # a memory format only: how slabs lie is not the network's to say
        return args[0].node
    out = on_meta(func, args, kwargs)
    (args, kwargs), nodes = with_leaves(name, (args, kwargs), out.shape)
    template = (args, kwargs)
    given = nodes[0]
    if name in CONVERSIONS and given.dtype in HALF and given.unrounded.dtype == out.dtype:
        return given.unrounded
    layout = given.layout.moved(out.shape, len(out.shape) + given.layout.from_right)
    device_moves = [value for value in walk(template) if isinstance(value, (torch.device, str))]
    if name in ("to", "type") and any("cuda" in str(value) or "meta" in str(value) for value in device_moves):
        raise refuse(name, "a split tensor stays on its device")

    def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
        args, kwargs = filled(template, inputs)
        return func(*args, **kwargs)

    def into(inputs: Sequence[Tensor], out: Tensor) -> Tensor:
        args, kwargs = filled(template, inputs)
        return INTO[name](*args, **kwargs, out=out)

    place = silu_into if name == "silu" else into if name in INTO else None
    is_view = name in ("to", "detach")
    rounds = name in CONVERSIONS and given.dtype == torch.float32 and out.dtype in HALF
    return Pointwise(name, nodes, layout, out.dtype, function, into=place, view=is_view, rounds=rounds)


def with_leaves(name: str, call: Any, shape: Sequence[int]) -> tuple[Any, list[Node]]:
    """The call with slots for split tensors, and for dense ones that have rows of their own and must be cut alike."""
    slabs, template = split_inputs(call)
    nodes = [slab.node for slab in slabs]
    same_rows(name, nodes)
    ours = nodes[0].layout
    if any(shape[ours.from_right] != slab.node.layout.shape[slab.node.layout.dim] for slab in slabs):
        raise refuse(name, "it repeats a single row")

    def slot(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < -ours.from_right or value.shape[ours.from_right] == 1:
            return value
        layout = ours.moved(value.shape, value.dim() + ours.from_right)
        nodes.append(Leaf(value, layout, nodes[0].cuts))
        return Slot(len(nodes) - 1)

    return mapped(slot, template), nodes


@handles("contiguous")
def contiguous(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    """The same: how slabs lie in memory is not the network's to say."""
    return only_slab(name, args[0])


@handles("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
def dropout(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def wanted(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Any, bool]:
        return x, training and p > 0

    x, active = wanted(*args, **kwargs)
    if active:
        raise refuse(name, "its noise would depend on the slabs (put the network in eval mode)")
    return only_slab(name, x)


@handles("cat", "concat", "concatenate")
def cat(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    out = on_meta(func, args, kwargs)
    tensors = args[0] if args else kwargs["tensors"]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % out.dim()
    if any(isinstance(tensor, Deferred) and tensor.node.layout.dim == dim for tensor in tensors):
        raise refuse(name, "it joins along the axis that is split")
    call, nodes = with_leaves(name, list(tensors), out.shape)
    layout = nodes[0].layout.moved(out.shape, nodes[0].layout.dim)
    return Pointwise(name, nodes, layout, out.dtype, lambda inputs, rows: torch.cat(filled(call, inputs), dim))


@handles("softmax", "log_softmax", "_softmax", "layer_norm", "rms_norm", "normalize", "glu", "cumsum", "prelu")
def along_other_dims(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    """Operations on whole vectors along dimensions that are not split."""
    node = only_slab(name, args[0] if args else kwargs["input"], args[1:])
    out = on_meta(func, args, kwargs)
    ndim, split_dim = len(node.layout.shape), node.layout.dim
    if name in ("layer_norm", "rms_norm"):
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        dims = range(ndim - len(shape), ndim)
    elif name == "prelu":
        dims = range(1, 2)
    else:
        default = 1 if name == "normalize" else -1
        dim = args[1] if len(args) > 1 and name != "normalize" else kwargs.get("dim", default)
        dims = range(dim % ndim, dim % ndim + 1)
    if split_dim in dims:
        raise refuse(name, "it works along the axis that is split")
    _, template = split_inputs((args, kwargs))
    layout = node.layout.moved(out.shape, split_dim)

    def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
        args, kwargs = filled(template, inputs)
        return func(*args, **kwargs)

    return Pointwise(name, [node], layout, out.dtype, function)


def arithmetic_of(name: str, node: Node, weight: Tensor) -> torch.dtype:
    """The format of a product's arithmetic: that of float32 weights, also where slabs are of half precision.

    Such a result is rounded to the slabs' format, or not at all where float32 is asked for next.
    """
    if weight.dtype != node.dtype and not (node.dtype in HALF and weight.dtype == torch.float32):
        formats = [str(dtype).removeprefix("torch.") for dtype in (node.dtype, weight.dtype)]
        raise UnsupportedOperationError(
            f"{name} of {formats[0]} slabs with {formats[1]} weights; "
            "accepted: weights of the slabs' format, or float32"
        )
    return weight.dtype


@handles("linear")
def linear(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def parts(input: Any, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, Tensor, Tensor | None]:
        return input, weight, bias

    x, weight, bias = parts(*args, **kwargs)
    node = only_slab(name, x, weight, bias)
    dtype = arithmetic_of(name, node, weight)
    out = on_meta(F.linear, (Shadow(node.layout.shape, dtype), weight, bias), {})
    if node.layout.dim == out.dim() - 1:
        raise refuse(name, "it mixes the axis that is split")
    layout = node.layout.moved(out.shape, node.layout.dim)
    flops = 2 * weight.shape[-1] * math.prod(out.shape)

    def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
        return kernels.linear(inputs[0], weight, bias, node.dtype)

    return Pointwise(name, [node], layout, node.dtype, function, flops=flops)


# --- the same numbers in another shape --------------------------------------------------------------------------------


@handles("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def reshape(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    slab = args[0] if args else kwargs["input"]
    if name == "view" and any(isinstance(value, torch.dtype) for value in walk((args[1:], kwargs))):
        raise refuse(name, "it reinterprets the bytes")
    node = only_slab(name, slab)
    out = on_meta(func, args, kwargs)
    layout = node.layout.reshaped(out.shape, slab.home)
    if layout is None:
        raise refuse(name, f"the shape {tuple(out.shape)} tears the rows of {tuple(node.layout.shape)} apart")
    return Pointwise(
        name,
        [node],
        layout,
        out.dtype,
        lambda inputs, rows: inputs[0].reshape(layout.local_shape(rows)),
        view=True,
    )


@handles("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t")
def permute(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    node = only_slab(name, args[0] if args else kwargs["input"])
    shape = node.layout.shape
    marker = torch.empty([2 if dim == node.layout.dim else 1 for dim in range(len(shape))], device="meta")
    moved = func(marker, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    out = on_meta(func, args, kwargs)
    layout = node.layout.moved(out.shape, list(moved.shape).index(2))
    _, template = split_inputs((args, kwargs))

    def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
        args, kwargs = filled(template, inputs)
        return func(*args, **kwargs)

    return Pointwise(name, [node], layout, out.dtype, function, view=True)


@handles("chunk", "split", "unbind", "tensor_split", "split_with_sizes")
def pieces(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> tuple[Node, ...]:
    node = only_slab(name, args[0] if args else kwargs.get("input", kwargs.get("tensor")))
    position = 1 if name == "unbind" else 2
    dim = (args[position] if len(args) > position else kwargs.get("dim", 0)) % len(node.layout.shape)
    outs = on_meta(func, args, kwargs)
    if dim == node.layout.dim:
        raise refuse(name, "it cuts the axis that is split")
    _, template = split_inputs((args, kwargs))
    split_dim = node.layout.dim - (name == "unbind" and dim < node.layout.dim)

    def piece(index: int) -> Callable[[Sequence[Tensor], int], Tensor]:
        def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
            args, kwargs = filled(template, inputs)
            return func(*args, **kwargs)[index]

        return function

    return tuple(
        Pointwise(name, [node], node.layout.moved(out.shape, split_dim), out.dtype, piece(i), view=True)
        for i, out in enumerate(outs)
    )


@handles("__getitem__", "narrow", "select")
def index(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    node = only_slab(name, args[0], args[1:], kwargs)
    shape = node.layout.shape
    key = index_key(name, args, kwargs, len(shape))
    if key[node.layout.dim] != slice(None) or any(not isinstance(k, (int, slice)) for k in key):
        raise refuse(name, "it indexes the axis that is split, or by something else than numbers and ranges")
    kept = [dim for dim, k in enumerate(key) if isinstance(k, slice)]
    out = torch.empty(shape, dtype=node.dtype, device="meta")[key]
    layout = node.layout.moved(out.shape, kept.index(node.layout.dim))
    return Pointwise(name, [node], layout, out.dtype, lambda inputs, rows: inputs[0][key], view=True)


def index_key(name: str, args: tuple, kwargs: dict, ndim: int) -> tuple[Any, ...]:
    """An index of one entry a dimension."""
    if name == "__getitem__":
        given = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(k is None for k in given):
            raise refuse(name, "it adds a dimension (use unsqueeze)")
        at = next((i for i, k in enumerate(given) if k is Ellipsis), len(given))
        after = given[at + 1 :]
        return (*given[:at], *[slice(None)] * (ndim - at - len(after)), *after)
    dim, start, *length = (*args[1:], *kwargs.values())
    key: list[Any] = [slice(None)] * ndim
    key[dim] = slice(start, start + length[0]) if name == "narrow" else start
    return tuple(key)


# --- windows ----------------------------------------------------------------------------------------------------------


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
    source = node if dtype == node.dtype else node.unrounded
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
    weights, plain = filter_of(weight), max(*stride, *dilation, groups) == 1

    def giving(result: torch.dtype) -> Windowed:
        def function(slab: Tensor, own_padding: int) -> Tensor:
            pad = [own_padding if i == axis else p for i, p in enumerate(padding)]
            return kernels.convolve(func, slab, weights, bias, stride, pad, dilation, groups, result)

        def memory(rows: int) -> kernels.ConvMemory:
            formats = (source.dtype, result)
            return kernels.conv_memory(layout.local_shape(rows)[2:], weight, padding, stride, formats, plain)

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
            release=weights.release,
            unrounded=None if result == dtype else lambda: giving(dtype),
        )

    return giving(node.dtype)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
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
    ndim = int(name[14])
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

    def function(slab: Tensor) -> Tensor:
        is_widened = slab.device.type == "cpu" and kernels.is_widened(slab.dtype) and not torch.is_grad_enabled()
        wide = torch.float32 if is_widened else dtype
        return func(slab.to(wide), weight.to(wide), None, stride, pad, extra, groups, dilation)

    flops = 2 * math.prod(weight.shape[1:]) * math.prod(node.layout.shape)
    cuts = through(node.cuts, node.rows, layout.rows)
    return TransposedConv(node, layout, node.dtype, cuts, window, function, bias, flops)


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d")
def pool(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    is_mean = name.startswith("avg")
    names = ["input", "kernel_size", "stride", "padding", *(() if is_mean else ("dilation",)), "ceil_mode"]
    names += ["count_include_pad", "divisor_override"] if is_mean else ["return_indices"]
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given.pop("input"))
    ndim = int(name[8])
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
    blocks = is_mean and ndim == 3 and kernel == stride and not any(padding) and options["divisor_override"] is None
    if ndim == 1:
        options.pop("divisor_override", None)

    def function(slab: Tensor, own_padding: int) -> Tensor:
        pad = [own_padding if i == axis else p for i, p in enumerate(padding)]
        if blocks and slab.device.type == "cpu" and not torch.is_grad_enabled():
            return kernels.mean_pool(slab, kernel)
        if slab.dtype == torch.bfloat16 and slab.device.type == "cpu":  # torch has no such kernel
            return func(slab.float(), kernel, stride, pad, **options).to(slab.dtype)
        return func(slab, kernel, stride, pad, **options)

    def memory(rows: int) -> kernels.ConvMemory:
        size = layout.local_shape(rows)
        return kernels.mean_pool_memory(size[2:], size[1], kernel, node.dtype)

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

    def function(slab: Tensor, own_padding: int) -> Tensor:
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


# --- norms ------------------------------------------------------------------------------------------------------------


@handles("group_norm")
def group_norm(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def parts(
        input: Any,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> tuple[Any, ...]:
        return input, num_groups, weight, bias, eps

    x, groups, weight, bias, eps = parts(*args, **kwargs)
    node = only_slab(name, x, weight, bias)
    on_meta(func, args, kwargs)
    if node.layout.dim < 2:
        raise refuse(name, "it needs a tensor (b, c, ...) that is split along a later dimension")
    return Normalised(node, moments_of(node, groups), weight, bias, eps)


def moments_of(node: Node, groups: int) -> MomentsOf:
    """The moments of a node, shared with an earlier norm of the same groups."""
    known = (other for other in node.consumers if isinstance(other, MomentsOf) and other.groups == groups)
    return next(known, None) or MomentsOf(node, groups)


@handles("instance_norm")
def instance_norm(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given["input"])
    if not given.get("use_input_stats", True) or given.get("running_mean") is not None:
        raise refuse(name, "running statistics are not supported")
    groups = node.layout.shape[1]
    return Normalised(node, moments_of(node, groups), given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


@handles("batch_norm")
def batch_norm(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given.pop("input"))
    if given.get("training"):
        raise refuse(name, "batch statistics are not supported (put the network in eval mode)")
    return Pointwise(name, [node], node.layout, node.dtype, lambda inputs, rows: F.batch_norm(inputs[0], **given))


# --- attention --------------------------------------------------------------------------------------------------------


@handles("scaled_dot_product_attention")
def attention(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    query, key, value = (given.pop(part) for part in names[:3])
    if given.get("attn_mask") is not None or given.get("is_causal") or given.get("dropout_p"):
        raise refuse(name, "masks, causal order and dropout are not supported")
    if not isinstance(query, Deferred):
        raise refuse(name, "keys and values are split, but the queries are not")
    node = query.node
    out = on_meta(func, (query, key, value), given)
    tokens = len(node.layout.shape) - 2
    flops = 2 * (query.shape[-1] + value.shape[-1]) * math.prod(out.shape[:-1]) * key.shape[-2]
    inputs = [node, *(part.node for part in (key, value) if isinstance(part, Deferred))]
    if node.layout.dim == tokens:
        inputs = [node, *(Whole(other) for other in inputs[1:])]
    elif node.layout.dim > tokens or len(inputs) < 3:
        raise refuse(name, f"the queries are split along dimension {node.layout.dim}")
    else:
        same_rows(name, inputs)
    _, template = split_inputs((query, key, value))
    layout = node.layout.moved(out.shape, node.layout.dim)
    return Pointwise(
        name, inputs, layout, out.dtype, lambda given_, rows: func(*filled(template, given_), **given), flops=flops
    )


@handles("matmul", "bmm", "__matmul__")
def matmul(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    left, right = args
    out = on_meta(func, args, kwargs)
    if not isinstance(left, Deferred) or left.node.layout.dim == len(left.node.layout.shape) - 1:
        raise refuse(name, "the left factor must be split along its rows or its batch")
    node = left.node
    flops = 2 * left.shape[-1] * math.prod(out.shape)
    layout = node.layout.moved(out.shape, out.dim() + node.layout.from_right)
    if not isinstance(right, Deferred):
        if node.layout.from_right < -2 and right.dim() >= -node.layout.from_right:
            raise refuse(name, "the batch is split but the right factor is not")
        return Pointwise(name, [node], layout, out.dtype, lambda given, rows: given[0] @ right, flops=flops)
    other: Node = right.node
    if node.layout.from_right < -2:
        same_rows(name, [node, other])
    else:
        other = Whole(other)
    return Pointwise(name, [node, other], layout, out.dtype, lambda given, rows: given[0] @ given[1], flops=flops)
