"""Norms over all rows, and what works along dimensions that are not split."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from maisi.splitting.graph import MomentsOf, Node, Normalised, Pointwise
from maisi.splitting.ops.handlers import filled, handles, on_meta, only_slab, refuse, split_inputs


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
    return Normalised(node, MomentsOf(node, groups), weight, bias, eps)


@handles("instance_norm")
def instance_norm(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given["input"])
    if not given.get("use_input_stats", True) or given.get("running_mean") is not None:
        raise refuse(name, "running statistics are not supported")
    groups = node.layout.shape[1]
    return Normalised(node, MomentsOf(node, groups), given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


@handles("batch_norm")
def batch_norm(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    node = only_slab(name, given.pop("input"))
    if given.get("training"):
        raise refuse(name, "batch statistics are not supported (put the network in eval mode)")
    return Pointwise(name, [node], node.layout, node.dtype, lambda inputs, rows: F.batch_norm(inputs[0], **given))


@handles("softmax", "layer_norm", "prelu")
def along_other_dims(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Node:
    """Operations on whole vectors along dimensions that are not split."""
    node = only_slab(name, args[0] if args else kwargs["input"], args[1:])
    out = on_meta(func, args, kwargs)
    ndim, split_dim = len(node.layout.shape), node.layout.dim
    if name == "layer_norm":
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        dims = range(ndim - len(shape), ndim)
    elif name == "prelu":
        dims = range(1, 2)
    else:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        dims = range(dim % ndim, dim % ndim + 1)
    if split_dim in dims:
        raise refuse(name, "it works along the axis that is split")
    _, template = split_inputs((args, kwargs))
    layout = node.layout.moved(out.shape, split_dim)

    def function(inputs: Sequence[Tensor], rows: int) -> Tensor:
        args, kwargs = filled(template, inputs)
        return func(*args, **kwargs)

    return Pointwise(name, [node], layout, out.dtype, function)
