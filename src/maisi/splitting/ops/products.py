"""Matrix products and attention, whose keys and values are gathered."""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.graph import Linear, Node, Pointwise, Whole
from maisi.splitting.ops.handlers import (
    Deferred,
    Shadow,
    arithmetic_of,
    filled,
    handles,
    on_meta,
    only_slab,
    refuse,
    same_rows,
    split_inputs,
)


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
    return Linear(node, layout, weight, bias)


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


@handles("matmul", "__matmul__")
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
