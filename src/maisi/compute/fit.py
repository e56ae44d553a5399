"""How the networks of a bundle are fitted to a request: cut into slabs, over ranks, within memory."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maisi.bundle.bundle import Bundle
from maisi.compute.autocast import in_autocast
from maisi.compute.calls import Work, WrappedNetwork, call_name, calls_of, result_format
from maisi.compute.compute import Compute, format_bytes
from maisi.compute.machine import dtype_of
from maisi.errors import InvalidPlanError, InvalidRequestError
from maisi.shapes import in_words
from maisi.splitting.execute import kept_between_calls
from maisi.splitting.plan import MemoryPlan, plan_memory, run_split
from maisi.splitting.precision import in_format, kept_in_float32
from maisi.splitting.ranks import Ranks

PROCESS_BYTES = 400_000_000
"""What Python, torch and the libraries hold before any network is there (measured on Linux, CPU build)."""


def fit(bundle: Bundle, compute: Compute, work: Work, ranks: Ranks | None = None) -> Bundle:
    """The bundle with networks that do `work` in slabs: over ranks if any, within memory if limited.

    Otherwise a network works on one slab on a CPU, which is faster than the bare network and in half precision nearer
    to float32; on a GPU it is the bare network, in half precision within autocast. Raises `InvalidPlanError` with the
    least memory that would do.
    """
    plans = plan(bundle, compute, work) if compute.memory is not None else None
    dtype = dtype_of(compute)

    def load(name: str) -> Any:
        network = bundle.network(name)
        check_format(network, name, dtype)
        device = next(network.parameters()).device.type
        if device == "cpu" or plans is not None or ranks is not None:
            return split_network(name, network, plans, ranks, dtype)
        return whole_network(network, device, dtype)

    return replace(bundle, load=load)


def plan(bundle: Bundle, compute: Compute, work: Work) -> dict[str, MemoryPlan]:
    """A plan for each call that `work` makes, so that the process with all networks stays within the memory.

    Raises `InvalidPlanError` with the least memory that would do, `InvalidRequestError` where the scratch folder is
    not there.
    """
    assert compute.memory is not None
    check_scratch(compute)
    dtype = dtype_of(compute)
    fixed, told = fixed_bytes(bundle, dtype), str(dtype).removeprefix("torch.")
    plans: dict[str, MemoryPlan] = {}
    refused: dict[str, int] = {}
    for call in calls_of(bundle, dtype, work).values():
        besides = fixed + call.held_bytes
        try:
            plans[call.name] = plan_memory(
                call.function,
                call.shape,
                max(0, compute.memory - besides),
                dtype=call.dtype,
                folder=compute.scratch,
                host_bytes=compute.host_memory,
            )
        except InvalidPlanError as error:
            if error.least_bytes is None:
                raise
            size = in_words(call.shape[2:])
            refused[f"{call.name} of {size} voxels in {told}"] = besides + error.least_bytes
    if refused:
        raise _too_little(refused, compute, fixed)
    return plans


def _too_little(refused: dict[str, int], compute: Compute, fixed: int) -> InvalidPlanError:
    """The error for calls, by the least memory that each needs, that do not fit into the memory of a request."""
    assert compute.memory is not None
    call, least = max(refused.items(), key=lambda item: item[1])
    megabytes = -(-least // 10**6)
    return InvalidPlanError(
        f"{call} does not fit into {format_bytes(compute.memory)}, of which {format_bytes(fixed)} go to the process "
        f"and the networks; accepted: --memory {megabytes}MB or more{_hint(compute)}",
        megabytes * 10**6,
    )


def check_scratch(compute: Compute) -> None:
    """Nothing, or an `InvalidRequestError` for a scratch folder that is not there."""
    if compute.scratch is not None and not compute.scratch.is_dir():
        raise InvalidRequestError(f"no folder {compute.scratch} to keep tensors in; accepted: a folder that exists")


def fixed_bytes(bundle: Bundle, dtype: torch.dtype) -> int:
    """What the process holds before any volume is there."""
    parameters = sum(network["num_parameters"] for network in bundle.describe()["networks"].values())
    return PROCESS_BYTES + int(parameters) * dtype.itemsize


def between_calls(compute: Compute) -> AbstractContextManager[None]:
    """What a loop over the same networks keeps from call to call: nothing where memory is limited."""
    return kept_between_calls() if compute.memory is None else nullcontext()


def precision_of(bundle: Bundle) -> str:
    """The number format that the networks of a bundle compute in: that of their weights, but for those kept float32."""
    formats = set()
    for name in bundle.names:
        network = bundle.network(name)
        kept = kept_in_float32(network)
        formats |= {weights.dtype for each, weights in network.named_parameters() if each not in kept}
    return str(next(iter(formats), torch.float32)).removeprefix("torch.")


def check_format(network: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Raise `InvalidRequestError` where a network was loaded in another format than a request computes in."""
    kept = kept_in_float32(network)
    formats = {weights.dtype for each, weights in network.named_parameters() if each not in kept}
    if not formats <= {dtype}:
        wanted = str(dtype).removeprefix("torch.")
        got = ", ".join(sorted(str(each).removeprefix("torch.") for each in formats))
        raise InvalidRequestError(
            f"the request computes in {wanted}, the {name} of the bundle is in {got}; accepted: "
            f'Compute(precision="{got}"), or load_bundle(..., dtype=torch.{wanted}, narrow_in_float32=True)'
        )


def split_network(
    name: str, network: nn.Module, plans: Mapping[str, MemoryPlan] | None, ranks: Ranks | None, dtype: torch.dtype
) -> WrappedNetwork:
    """The network with computing methods that run slab by slab, with plans or without.

    It computes in `dtype` on tensors in that format or float32, and passes for the network's class.
    """

    def split(method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        plan = None if plans is None else plans[call_name(name, method)]

        def run(x: Tensor, *inputs: Any, **conditions: Any) -> Any:
            def work(slabs: Any) -> Any:
                return function(slabs, *inputs, **conditions)

            return run_split(in_format(work, dtype, result_format(network, dtype)), x, plan, ranks)

        return run

    return WrappedNetwork(network, split)


def whole_network(network: nn.Module, device: str, dtype: torch.dtype) -> Any:
    """The network itself, in half precision within autocast, for a kind of device: cuda or cpu."""
    if dtype == torch.float32:
        return network
    results = result_format(network, dtype)
    return WrappedNetwork(network, lambda method, function: in_autocast(function, device, dtype, results))


def _hint(compute: Compute) -> str:
    unused = {
        "--scratch": compute.scratch is None,
        "--host-memory": not compute.host_memory and compute.device != "cpu",
    }
    options = " or ".join(option for option, is_unused in unused.items() if is_unused)
    return f" ({options} may lower that)" if options else ""
