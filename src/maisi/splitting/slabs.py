"""`SlabTensor`: an activation as slabs along one spatial axis, on which an unchanged network runs.

`net(SlabTensor.split(x, parts=8)).gather()` equals `net(x)` to rounding, and never holds more than a few slabs of what
it computes plus what must be stored between two passes over the rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from maisi.errors import InvalidPlanError
from maisi.splitting.execute import evaluate
from maisi.splitting.graph import Leaf, Node
from maisi.splitting.interpret import SplitSettings
from maisi.splitting.layout import Layout
from maisi.splitting.ops import ELEMENTWISE, HANDLERS, Deferred, refuse, walk
from maisi.splitting.shares import Shares

DESCRIBING = {  # what may be asked of a tensor that is not there
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "__len__", "element_size", "is_floating_point",
    "is_complex", "get_device", "__hash__", "stride", "storage_offset", "is_contiguous", "is_same_size",
}  # fmt: skip
IN_PLACE = {f"{name}_" for name in ELEMENTWISE} | {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow")}


class constructor:
    """Makes `SlabTensor.split(x, ...)` a constructor while `slab.split(...)` stays the tensor's method."""

    def __init__(self, function: Callable[..., "SlabTensor"]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, slab: "SlabTensor | None", owner: type["SlabTensor"]) -> Callable[..., Any]:
        return partial(self._function, owner) if slab is None else partial(torch.split, slab)


class SlabTensor(Deferred):
    """A tensor split along one axis; operations on it are written down and carried out by `gather`."""

    node: Node
    home: int
    settings: SplitSettings
    gradients: bool

    @staticmethod
    def __new__(cls, node: Node, home: int, settings: SplitSettings, device: torch.device) -> "SlabTensor":
        slab = torch.Tensor._make_wrapper_subclass(cls, node.layout.shape, dtype=node.dtype, device=device)
        slab.node, slab.home, slab.settings, slab.gradients = node, home, settings, torch.is_grad_enabled()
        return slab

    @constructor
    def split(
        cls: type["SlabTensor"],
        x: Tensor,
        parts: int | None = None,
        axis: int = 0,
        *,
        sizes: Sequence[int] | None = None,
        ranks: Shares | None = None,
        settings: SplitSettings | None = None,
    ) -> "SlabTensor":
        """The tensor (b, c, x, y, z) as `parts` slabs along a spatial axis (0 = x), or slabs of the given sizes.

        With `ranks` every rank calls this with the same whole tensor and works on its own slabs (by default one each).
        Raises `InvalidPlanError` where the axis does not exist or has fewer rows than slabs.
        """
        axes = x.dim() - 2
        if not 0 <= axis < axes:
            raise InvalidPlanError(f"axis {axis} of a tensor with {axes} spatial axes; accepted: 0 to {axes - 1}")
        rows = x.shape[2 + axis]
        if parts is None and sizes is None and ranks is not None:
            parts = min(ranks.size, rows)
        cuts = even_cuts(rows, parts or 1) if sizes is None else sized_cuts(rows, sizes)
        if sizes is not None and parts not in (None, len(sizes)):
            raise InvalidPlanError(f"{parts} parts and {len(sizes)} sizes; give one of them")
        if ranks is not None:
            settings = replace(settings or SplitSettings(), ranks=ranks)
        leaf = Leaf(x, Layout(tuple(x.shape), 2 + axis, rows), cuts)
        return cls(leaf, 2 + axis, settings or SplitSettings(), x.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of every slab."""
        cuts = self.node.cuts
        return tuple(stop - start for start, stop in pairwise(cuts))

    def gather(self, *args: Any, **kwargs: Any) -> Tensor:
        """The whole tensor: carries out all that was written down."""
        if args or kwargs:
            raise refuse("gather by indices", "it is not among the supported operations")
        return gather(self)[0]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if name in DESCRIBING:
                return func(*args, **kwargs)
            if name in ("__repr__", "__str__", "__format__"):
                return f"SlabTensor({tuple(args[0].shape)}, axis={args[0].home - 2}, sizes={args[0].sizes})"
            return call(func, name, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        raise refuse(str(func), "it is not among the supported operations")


def call(func: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any:
    """Writes an operation down; an in-place one gives its tensor the new value."""
    first = next(value for value in walk((args, kwargs)) if isinstance(value, SlabTensor))
    in_place = name in IN_PLACE or kwargs.get("inplace") is True
    if in_place:
        target = args[0]
        if not isinstance(target, SlabTensor):
            raise refuse(name, "a whole tensor cannot take a split one in place")
        if target.node.view or any(consumer.view for consumer in target.node.consumers):
            raise refuse(name, "it would have to change the tensors that share memory with this one")
        name, func = out_of_place(name, func)
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    handler = HANDLERS.get(name)
    if handler is None:
        raise refuse(name, "it is not among the supported operations")
    node = handler(func, name, args, kwargs)
    if in_place:
        if node.dtype != target.node.dtype or node.layout.shape != target.node.layout.shape:
            raise refuse(name, "in place it would change the shape or type of its tensor")
        target.node = node
        return target
    if isinstance(node, tuple):
        return tuple(SlabTensor(part, first.home, first.settings, first.device) for part in node)
    return SlabTensor(node, first.home, first.settings, first.device)


def out_of_place(name: str, func: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """The operation of which another is the in-place form."""
    if name.startswith("__i"):
        name = {"truediv": "div"}.get(name[3:-2], name[3:-2])
        return name, getattr(torch.Tensor, name)
    if name.endswith("_"):
        return name[:-1], getattr(torch.Tensor, name[:-1], None) or getattr(torch.nn.functional, name[:-1])
    return name, func


def gather(*slabs: SlabTensor) -> list[Tensor]:
    """The whole tensors of several results of one computation, which is carried out once."""
    settings = slabs[0].settings
    with torch.set_grad_enabled(any(slab.gradients for slab in slabs)):
        return evaluate([slab.node for slab in slabs], settings)


def even_cuts(rows: int, parts: int) -> tuple[int, ...]:
    """Borders of slabs whose sizes differ by one row at most."""
    if not 1 <= parts <= max(rows, 1):
        raise InvalidPlanError(f"{parts} slabs of {rows} rows; accepted: 1 to {rows}")
    return tuple(rows * i // parts for i in range(parts + 1))


def sized_cuts(rows: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Borders of slabs of these sizes."""
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    if not sizes or min(sizes) < 1 or cuts[-1] != rows:
        raise InvalidPlanError(f"slabs of {list(sizes)} rows for {rows} rows; they must be positive and sum to {rows}")
    return tuple(cuts)
