"""The calls that a piece of work makes to its networks, found by doing it on tensors without data."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, nn

from maisi.bundle.bundle import Bundle
from maisi.networks.build import build_network
from maisi.networks.controlnet import ControlNet
from maisi.splitting.ops import mapped, walk
from maisi.splitting.precision import in_format, lowered
from maisi.splitting.slabs import SlabTensor

Work = Callable[[Bundle], object]
"""Something that is done with the networks of a bundle, on whatever device they are."""


@dataclass(frozen=True)
class Call:
    """One way in which a network is called: a function of its first argument, and what is in memory meanwhile."""

    name: str  # network, or network.method
    function: Callable[[Any], Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    held_bytes: int  # the argument, the other arguments, and results of earlier calls that are still needed


def calls_of(bundle: Bundle, dtype: torch.dtype, work: Work) -> dict[str, Call]:
    """The calls that `work` makes with networks that compute in `dtype`, by name; of equal calls the first.

    The work is done for real, on networks and tensors of the meta device: shapes are right, nothing is computed.
    """
    recorder = Recorder(dtype)
    work(replace(bundle, load=lambda name: recorder.network(name, bundle)))
    return recorder.calls


def computing_methods(network: nn.Module) -> list[str]:
    """Names of the public methods of a network that compute; `forward` goes by `__call__`."""
    own = [name for name, value in vars(type(network)).items() if isfunction(value) and not name.startswith("_")]
    return ["__call__" if name == "forward" else name for name in own]


def call_name(network: str, method: str) -> str:
    """What people call a method of a network: autoencoder.decode, or unet for calling it."""
    return network if method == "__call__" else f"{network}.{method}"


def result_format(network: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The number format of a network's results: float32, but what only another network reads stays as computed."""
    return dtype if isinstance(network, ControlNet) else torch.float32


class Recorder:
    """Writes down every call, and which results of earlier ones are still there."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.calls: dict[str, Call] = {}
        self._results: list[weakref.ref[Tensor]] = []

    def network(self, name: str, bundle: Bundle) -> Any:
        """The network of that name on the meta device, every call of it recorded."""
        with torch.device("meta"):
            network = lowered(build_network(bundle.configs[name]), self.dtype)

        def recorded(method: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(x: Tensor, *inputs: Any, **conditions: Any) -> Any:
                return self.record(call_name(name, method), network, function, x, (inputs, conditions))

            return call

        return WrappedNetwork(network, recorded)

    def record(self, name: str, network: nn.Module, function: Callable[..., Any], x: Tensor, args: Any) -> Any:
        """The results of a call, as tensors without data."""
        inputs, conditions = mapped(stand_in, args)  # a call that is kept must not keep what it was given

        def work(slabs: Any) -> Any:
            return function(slabs, *inputs, **conditions)

        formatted = in_format(work, self.dtype, result_format(network, self.dtype))
        alive = {id(t): t for t in [x, *walk(args), *(found() for found in self._results)] if isinstance(t, Tensor)}
        held = sum(math.prod(t.shape) * t.dtype.itemsize for t in alive.values())
        self.calls.setdefault(name, Call(name, formatted, tuple(x.shape), x.dtype, held))
        return mapped(self._result, formatted(SlabTensor.split(x)))

    def _result(self, value: Any) -> Any:
        if not isinstance(value, SlabTensor):
            return value
        result = torch.empty(value.shape, dtype=value.dtype, device="meta")
        self._results.append(weakref.ref(result))
        return result


def stand_in(value: Any) -> Any:
    """Another tensor without data for one; anything else as it is."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


class WrappedNetwork:
    """A network whose computing methods are called through `wrap(method, function)`.

    In all else it is the network, and passes for its class.
    """

    def __init__(self, network: nn.Module, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._network, self._wrap = network, wrap
        self._methods = computing_methods(network)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._network)

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._network, method)
        return self._wrap(method, found) if method in self._methods else found

    def __call__(self, x: Tensor, *inputs: Any, **conditions: Any) -> Any:
        return self._wrap("__call__", self._network)(x, *inputs, **conditions)
