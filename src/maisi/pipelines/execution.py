"""How a request is carried out: its bundle and its input, threads and memory."""

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle, load_bundle, packaged_names
from maisi.bundle.upstream import build_network
from maisi.errors import InvalidBundleError, InvalidPlanError, InvalidRequestError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.pipelines.conditioning import condition_tensors
from maisi.pipelines.requests import CodecRequest, ComputeRequest
from maisi.pipelines.sizes import format_bytes
from maisi.shapes import Size3
from maisi.space.files import read_volume
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import Volume
from maisi.splitting.execute import kept_between_calls
from maisi.splitting.plan import MemoryPlan, plan_memory, run_split
from maisi.splitting.ranks import Ranks

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=ComputeRequest)


def with_threads(request: Request) -> Request:
    """The request with its number of threads filled in, and torch set to it: the last bits of sums depend on it."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    return request.model_copy(update={"threads": torch.get_num_threads()})


@contextmanager
def ranks_of_run() -> Iterator[Ranks | None]:
    """This process among those that torchrun started together, None where it works alone.

    All ranks make the same checks and the same numbers; the first one writes. A rank that fails makes the others fail.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    ranks = Ranks.join()
    try:
        yield ranks
    except BaseException:
        ranks.abort()
        raise
    ranks.leave()


def dtype_of(request: ComputeRequest) -> torch.dtype:
    """The number format that networks compute in."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[request.precision]


def device_of(request: ComputeRequest) -> torch.device:
    """Where networks compute; `cuda` is the rank's own GPU under torchrun. Raises `InvalidRequestError` for what is not
    there."""
    device = torch.device(request.device)
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise InvalidRequestError(f"there is no device cuda:{index} here; accepted: {there}")
    return torch.device("cuda", index)


def bundle_of(request: ComputeRequest) -> Bundle:
    """The bundle of a request, in its precision on its device; `InvalidBundleError` where no autoencoder takes CTs."""
    bundle = load_bundle(request.bundle, device=device_of(request), dtype=dtype_of(request))
    if "autoencoder" not in bundle.kinds:
        raise InvalidBundleError(f"bundle {bundle.name!r} has no autoencoder; it holds {', '.join(bundle.kinds)}")
    config = bundle.configs["autoencoder"]
    assert isinstance(config, AutoencoderConfig)
    if (config.in_channels, config.out_channels) != (1, 1):
        raise InvalidBundleError(
            f"the autoencoder of bundle {bundle.name!r} takes {config.in_channels} channels and gives "
            f"{config.out_channels} (label maps); accepted: a bundle whose autoencoder takes and gives a CT, 1 channel"
        )
    return bundle


def lasting_name(request: ComputeRequest, bundle: Bundle) -> str:
    """The bundle's name where it is packaged, else its absolute path."""
    if bundle.path is None or request.bundle in packaged_names():
        return request.bundle
    return str(bundle.path.resolve())


def volume_of(source: Path, request: CodecRequest, bundle: Bundle) -> Volume:
    """The volume to encode, resampled where the request says so; warns of a spacing the bundle was not trained for."""
    volume = read_volume(source, series=request.series)
    if request.spacing is not None:
        volume = resample(volume, with_spacing(volume.grid, request.spacing))
    for sentence in bundle.limits.violations((1, 1, 1), volume.grid.spacing):
        if sentence.startswith("spacing"):
            logger.warning("%s; --spacing resamples first", sentence)
    return volume


def between_calls(request: ComputeRequest) -> AbstractContextManager[None]:
    """What a loop over the same networks keeps from call to call: nothing where memory is limited."""
    return kept_between_calls() if request.memory is None else nullcontext()


METHODS = {
    "autoencoder": {"encode": "encode", "decode": "decode"},
    "unet": {"__call__": "denoise"},
    "controlnet": {"__call__": "steer", "embed_condition": "embed labels"},
}
"""The work that can be cut, by the network and the method that does it."""

ALL_WORK = tuple(work for methods in METHODS.values() for work in methods.values())

PROCESS_BYTES = 400_000_000
"""What Python, torch and the libraries hold before any network is there (measured on Linux, CPU build)."""


class Work(NamedTuple):
    """Something a bundle does: a function of networks without data, its input's shape, and what is held meanwhile."""

    function: Callable[[Any], Any]
    shape: tuple[int, ...]
    held: tuple[torch.Tensor, ...] = ()


def work_of(bundle: Bundle, size: Size3, dtype: torch.dtype, only: Collection[str] = ALL_WORK) -> dict[str, Work]:
    """What a bundle does on volumes of `size` voxels, by name; sampling takes fewer sizes than the autoencoder."""
    with torch.device("meta"):
        networks: dict[str, Any] = {kind: build_network(config).to(dtype) for kind, config in bundle.configs.items()}
    autoencoder, unet, controlnet = (networks.get(kind) for kind in ("autoencoder", "unet", "controlnet"))
    if autoencoder is None:
        return {}
    padded = tuple(-(-n // autoencoder.factor) for n in size)
    latent = (1, autoencoder.config.latent_channels, *padded)
    volume = (1, autoencoder.config.in_channels, *(n * autoencoder.factor for n in padded))
    work = {"encode": Work(autoencoder.encode, volume), "decode": Work(autoencoder.decode, latent)}
    if unet is None or work.keys() >= set(only):
        return work
    given = condition_tensors(RegionSpan.named("chest"), (1.0, 1.0, 1.0), 0, unet.config)
    conditions = {name: t.to("meta", dtype if t.is_floating_point() else t.dtype) for name, t in given.items()}
    t, residuals, held = torch.empty(1, device="meta"), None, ()
    if controlnet is not None:
        bits = (1, controlnet.config.condition_channels, *volume[2:])
        embedding = controlnet.embed_condition(torch.empty(bits, dtype=dtype, device="meta"))
        shared = {name: conditions[name] for name in ("modality",) if name in conditions}
        residuals = controlnet(torch.empty(latent, dtype=dtype, device="meta"), t, embedding, **shared)
        held = (embedding, *residuals.skips, residuals.middle)
        work["embed labels"] = Work(controlnet.embed_condition, bits)
        work["steer"] = Work(lambda x: controlnet(x, t, embedding, **shared), latent, (embedding,))
    work["denoise"] = Work(lambda x: unet(x, t, residuals=residuals, **conditions), latent, held)
    return work


def plan_bundle(
    bundle: Bundle, size: Size3, request: ComputeRequest, only: Collection[str] = ALL_WORK
) -> dict[str, MemoryPlan]:
    """A plan for each thing the bundle does, so that the process with all networks stays within the request's memory.

    Raises `InvalidPlanError` with the least memory that would do, `InvalidRequestError` where the scratch folder is
    not there.
    """
    assert request.memory is not None
    dtype, scratch = dtype_of(request), request.scratch
    if scratch is not None and not scratch.is_dir():
        raise InvalidRequestError(f"no folder {scratch} to keep tensors in; accepted: a folder that exists")
    fixed = fixed_bytes(bundle, dtype)
    plans = {}
    for name, work in work_of(bundle, size, dtype, only).items():
        if name not in only:
            continue
        besides = fixed + (math.prod(work.shape) + sum(t.numel() for t in work.held)) * dtype.itemsize
        if request.memory <= besides:
            raise InvalidPlanError(
                f"{name} of {size} voxels within {format_bytes(request.memory)}: the process, the networks and the "
                f"input alone take {format_bytes(besides)}"
            )
        try:
            plans[name] = plan_memory(
                work.function,
                work.shape,
                request.memory - besides,
                dtype=dtype,
                folder=scratch,
                host_bytes=request.host_memory,
            )
        except InvalidPlanError as error:
            unused = {
                "--scratch": scratch is None,
                "--host-memory": not request.host_memory and request.device != "cpu",
            }
            hint = ", ".join(option for option, is_unused in unused.items() if is_unused)
            raise InvalidPlanError(
                f"{name} of {size} voxels within {format_bytes(request.memory)}, of which {format_bytes(besides)} go "
                f"to the process, the networks and the input: {error}{f' ({hint})' if hint else ''}"
            ) from error
    return plans


def fixed_bytes(bundle: Bundle, dtype: torch.dtype) -> int:
    """What the process holds before any volume is there."""
    parameters = sum(network["num_parameters"] for network in bundle.describe()["networks"].values())
    return PROCESS_BYTES + int(parameters) * dtype.itemsize


def fitted(
    bundle: Bundle,
    size: Size3,
    request: ComputeRequest,
    only: Collection[str] = ALL_WORK,
    ranks: Ranks | None = None,
) -> Bundle:
    """The bundle, its work on volumes of `size` voxels cut into slabs: over ranks if any, within memory if limited.

    Otherwise work on a CPU is one slab, which is faster than the bare network; on a GPU it is the bare network. Raises
    `InvalidPlanError` with the least memory that would do.
    """
    plans = plan_bundle(bundle, size, request, only) if request.memory is not None else {}

    def load(kind: str) -> Any:
        methods = {method: plans.get(work) for method, work in METHODS[kind].items() if work in only}
        network = getattr(bundle, kind)
        is_bare = ranks is None and request.memory is None and next(network.parameters()).device.type != "cpu"
        return network if is_bare else SplitNetwork(network, methods, ranks)

    return replace(bundle, load=load)


class SplitNetwork:
    """A network of which some methods run slab by slab, with a plan or without; in all else it is the network."""

    def __init__(self, network: Any, methods: Mapping[str, MemoryPlan | None], ranks: Ranks | None) -> None:
        self._network, self._methods, self._ranks = network, methods, ranks

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        return self._split(found, name) if name in self._methods else found

    def __call__(self, x: torch.Tensor, *inputs: Any, **conditions: Any) -> Any:
        function = self._split(self._network, "__call__") if "__call__" in self._methods else self._network
        return function(x, *inputs, **conditions)

    def _split(self, function: Callable[..., Any], method: str) -> Callable[..., Any]:
        def run(x: torch.Tensor, *inputs: Any, **conditions: Any) -> Any:
            plan = self._methods[method]
            return run_split(lambda slabs: function(slabs, *inputs, **conditions), x, plan, self._ranks)

        return run
