"""Operations on every number by itself, and joins of channels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.graph import Leaf, Node, Pointwise, silu_into
from maisi.splitting.ops.handlers import (
    Deferred,
    Slot,
    filled,
    handles,
    mapped,
    on_meta,
    only_slab,
    refuse,
    same_rows,
    split_inputs,
    walk,
)

ELEMENTWISE = [
    "add", "sub", "rsub", "__rsub__", "mul", "div", "true_divide", "__rdiv__", "__rtruediv__", "__rpow__", "neg", "abs",
    "exp", "log", "sqrt", "rsqrt", "square", "pow", "sigmoid", "tanh", "silu", "mish", "gelu", "relu", "relu6",
    "leaky_relu", "elu", "selu", "softplus", "hardswish", "hardsigmoid", "hardtanh", "clamp", "minimum", "maximum",
    "where", "sin", "cos", "lerp", "to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "detach",
]  # fmt: skip
CONVERSIONS = ("to", "type", "type_as", "float", "half", "bfloat16")
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
    converts = name in CONVERSIONS
    return Pointwise(name, nodes, layout, out.dtype, function, into=place, view=is_view, converts=converts)


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


@handles("dropout", "dropout3d")
def dropout(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    def wanted(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Any, bool]:
        return x, training and p > 0

    x, active = wanted(*args, **kwargs)
    if active:
        raise refuse(name, "its noise would depend on the slabs (put the network in eval mode)")
    return only_slab(name, x)


@handles("cat")
def cat(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    out = on_meta(func, args, kwargs)
    tensors = args[0] if args else kwargs["tensors"]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % out.dim()
    if any(isinstance(tensor, Deferred) and tensor.node.layout.dim == dim for tensor in tensors):
        raise refuse(name, "it joins along the axis that is split")
    call, nodes = with_leaves(name, list(tensors), out.shape)
    layout = nodes[0].layout.moved(out.shape, nodes[0].layout.dim)
    return Pointwise(name, nodes, layout, out.dtype, lambda inputs, rows: torch.cat(filled(call, inputs), dim))
