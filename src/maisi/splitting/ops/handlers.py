"""Calls of torch as data: their split tensors, the shapes of what they would give, and the table of who takes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from maisi.errors import UnsupportedOperationError
from maisi.splitting.graph import HALF, Node


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
