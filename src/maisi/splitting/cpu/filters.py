"""Weights of convolutions made ready, for the slabs of a sweep or for all the calls of a loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.nn import Parameter

from maisi.splitting.cpu import compiled
from maisi.splitting.cpu.winograd import transform_weight

_kept: ContextVar["dict[int, Filter] | None"] = ContextVar("kept filters", default=None)


class Filter:
    """The weights of a convolution, transformed once for all the slabs of a sweep."""

    def __init__(self, weight: Tensor, lasts: bool = False) -> None:
        self.weight, self._lasts = weight, lasts
        self._transformed: Tensor | None = None

    def transformed(self) -> Tensor:
        """As by `compiled.pack_weight` where its kernel serves these weights, else by `transform_weight`."""
        if self._transformed is None:
            transform = compiled.pack_weight if compiled.serves(self.weight) else transform_weight
            self._transformed = transform(self.weight)
        return self._transformed

    def release(self) -> None:
        """Give the memory back at the end of a sweep, if no later call needs it."""
        if not self._lasts:
            self._transformed = None


@contextmanager
def kept_filters() -> Iterator[None]:
    """Within, transformed weights are kept from call to call; the weights must not change meanwhile."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def filter_of(weight: Tensor) -> Filter:
    """The filter of these weights: the known one of a parameter within `kept_filters`, else a new one."""
    known = _kept.get()
    if known is None or not isinstance(weight, Parameter):  # other weights may be made anew for every call
        return Filter(weight)
    if id(weight) not in known:
        known[id(weight)] = Filter(weight, lasts=True)  # holds the tensor, so no other one gets its id
    return known[id(weight)]
