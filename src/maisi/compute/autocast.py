"""A network called as it is, in half precision but for what keeps float32: the fastest way of a GPU with memory enough.

Autocast would multiply in half precision whatever the weights are in, and interpolate in float32. Here the rules are
those of `splitting.precision`: what has float32 weights is computed in float32, and nothing else is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maisi.splitting.ops import mapped
from maisi.splitting.precision import NARROW_CHANNELS

CONVOLUTIONS = {f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)}


class KeptFormats(TorchFunctionMode):
    """Within autocast: float32 weights and norms compute in float32, interpolation in the format of what it is given.

    A convolution's result is rounded to the half format where it is wide; a norm's is not, for the last convolution
    reads it in float32. Outside autocast nothing is changed.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._device, self._dtype = device, dtype

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        keeps = name in CONVOLUTIONS and args[1].dtype == torch.float32
        if not (keeps or name in ("group_norm", "interpolate")):
            return func(*args, **kwargs)
        given = args[0] if name == "interpolate" else args[0].float()
        with torch.autocast(self._device, enabled=False):
            result = func(given, *args[1:], **kwargs)
        return result.to(self._dtype) if keeps and result.shape[1] >= NARROW_CHANNELS else result


def in_autocast(
    function: Callable[..., Any], device: str, dtype: torch.dtype, results: torch.dtype
) -> Callable[..., Any]:
    """The function of dense tensors on a device, products in half precision, its results given in another format.

    `device` is a kind of it, as `torch.autocast` takes: cuda or cpu.
    """

    def run(*inputs: Any, **conditions: Any) -> Any:
        with torch.autocast(device, dtype), KeptFormats(device, dtype):
            found = function(*inputs, **conditions)
        return mapped(lambda value: value.to(results) if isinstance(value, Tensor) else value, found)

    return run
