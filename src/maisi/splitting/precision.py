"""Half precision where it is enough: which weights stay in float32, and a network called from float32 to float32.

What a network does first and last decides how well half precision keeps a volume (`docs/decisions/0005`). These
convolutions have few channels on one side and take little time, so they keep float32, in weights and in arithmetic; a
`SlabTensor` multiplies float32 weights in float32, whatever the slabs' format.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from maisi.splitting.ops import mapped
from maisi.splitting.slabs import SlabTensor

NARROW_CHANNELS = 16
"""Convolutions of fewer channels, in or out, keep float32."""


def kept_in_float32(network: nn.Module) -> set[str]:
    """Names of the parameters that keep float32 where the network computes in half precision.

    All do of a network that says so (`keeps_float32`).
    """
    if getattr(network, "keeps_float32", False):
        return {name for name, _ in network.named_parameters()}
    return {
        f"{name}.{parameter}".lstrip(".")
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm) or is_narrow(module)
        for parameter, _ in module.named_parameters(recurse=False)
    }


def is_narrow(module: nn.Module) -> bool:
    """True for a convolution of few channels, in or out."""
    return (
        isinstance(module, nn.modules.conv._ConvNd) and min(module.in_channels, module.out_channels) < NARROW_CHANNELS
    )


def lowered(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network, its weights now in `dtype` but for those that keep float32; to be called split."""
    kept = kept_in_float32(network) if dtype != torch.float32 else set()
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
    return network


def in_format(
    function: Callable[..., Any], dtype: torch.dtype, results: torch.dtype = torch.float32
) -> Callable[..., Any]:
    """The function of a split tensor, working in `dtype` on what is given in float32, with results in another format.

    Neither is rounded on the way where the first and the last convolution keep float32.
    """

    def run(x: SlabTensor, *inputs: Any, **conditions: Any) -> Any:
        found = function(x.to(dtype), *inputs, **conditions)
        return mapped(lambda value: value.to(results) if isinstance(value, SlabTensor) else value, found)

    return run
