"""The same numbers in another shape, or some of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maisi.splitting.graph import Node, Pointwise
from maisi.splitting.ops.handlers import filled, handles, on_meta, only_slab, refuse, split_inputs, walk


@handles("reshape", "view", "flatten", "unflatten")
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


@handles("transpose", "permute")
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


@handles("chunk", "split")
def pieces(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> tuple[Node, ...]:
    node = only_slab(name, args[0] if args else kwargs.get("input", kwargs.get("tensor")))
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(node.layout.shape)
    outs = on_meta(func, args, kwargs)
    if dim == node.layout.dim:
        raise refuse(name, "it cuts the axis that is split")
    _, template = split_inputs((args, kwargs))

    def piece(index: int) -> Callable[[Sequence[Tensor], int], Tensor]:
        def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
            args, kwargs = filled(template, inputs)
            return func(*args, **kwargs)[index]

        return function

    return tuple(
        Pointwise(name, [node], node.layout.moved(out.shape, node.layout.dim), out.dtype, piece(i), view=True)
        for i, out in enumerate(outs)
    )


@handles("__getitem__")
def index(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    node = only_slab(name, args[0], args[1:], kwargs)
    shape = node.layout.shape
    key = index_key(args[1], len(shape))
    if key[node.layout.dim] != slice(None) or any(not isinstance(k, (int, slice)) for k in key):
        raise refuse(name, "it indexes the axis that is split, or by something else than numbers and ranges")
    kept = [dim for dim, k in enumerate(key) if isinstance(k, slice)]
    out = torch.empty(shape, dtype=node.dtype, device="meta")[key]
    layout = node.layout.moved(out.shape, kept.index(node.layout.dim))
    return Pointwise(name, [node], layout, out.dtype, lambda inputs, rows: inputs[0][key], view=True)


def index_key(index: Any, ndim: int) -> tuple[Any, ...]:
    """An index of one entry a dimension."""
    given = index if isinstance(index, tuple) else (index,)
    if any(k is None for k in given):
        raise refuse("__getitem__", "it adds a dimension (use unflatten)")
    at = next((i for i, k in enumerate(given) if k is Ellipsis), len(given))
    after = given[at + 1 :]
    return (*given[:at], *[slice(None)] * (ndim - at - len(after)), *after)
