"""Weights of convolutions made ready, for the slabs of a sweep or for all the calls of a loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.nn import Parameter

from maisi.splitting.cpu import compiled
from maisi.splitting.cpu.winograd import transform_weight

_kept: ContextVar["dict[int, TransformedWeight] | None"] = ContextVar("kept weights", default=None)


class TransformedWeight:
    """The weights of a convolution, transformed once."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._transformed: Tensor | None = None

    def transformed(self) -> Tensor:
        """As by `compiled.pack_weight` where its kernel serves these weights, else by `transform_weight`."""
        if self._transformed is None:
            transform = compiled.pack_weight if compiled.serves(self.weight) else transform_weight
            self._transformed = transform(self.weight)
        return self._transformed


@contextmanager
def kept_weights() -> Iterator[None]:
    """Within, transformed weights are kept from call to call; the weights must not change meanwhile."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def transformed_weight(weight: Tensor) -> TransformedWeight:
    """These weights to be transformed: the known ones of a parameter within `kept_weights`, else new ones."""
    known = _kept.get()
    if known is None or not isinstance(weight, Parameter):  # other weights may be made anew for every call
        return TransformedWeight(weight)
    if id(weight) not in known:
        known[id(weight)] = TransformedWeight(weight)  # holds the tensor, so no other one gets its id
    return known[id(weight)]
