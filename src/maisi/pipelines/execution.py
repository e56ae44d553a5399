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
from maisi.errors import InvalidBundleError, InvalidPlanError, InvalidRequestError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import build_network
from maisi.pipelines.conditioning import condition_tensors
from maisi.pipelines.requests import CodecRequest, ComputeRequest
from maisi.pipelines.sizes import format_bytes
from maisi.shapes import Size3
from maisi.space.files import read_volume
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import Volume
from maisi.splitting.cpu.kernels import prefers_bfloat16
from maisi.splitting.execute import kept_between_calls
from maisi.splitting.plan import MemoryPlan, plan_memory, run_split
from maisi.splitting.precision import in_format, kept_in_float32, lowered
from maisi.splitting.ranks import Ranks

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=ComputeRequest)


def settled(request: Request) -> Request:
    """The request with what this machine decides filled in, so that it can be repeated on another.

    That is the number of threads, to which torch is set (the last bits of sums depend on it), and where the request
    names none the precision: the fastest that keeps a CT within 2 HU rms of float32, on a GPU float32.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    fastest = "bfloat16" if request.device == "cpu" and prefers_bfloat16() else "float32"
    settings = {"threads": torch.get_num_threads(), "precision": request.precision or fastest}
    return request.model_copy(update=settings)


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
    """The number format that networks compute in: float32 where a request was not `settled` and names none."""
    return torch.bfloat16 if request.precision == "bfloat16" else torch.float32


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
    dtype, device = dtype_of(request), device_of(request)
    bundle = load_bundle(request.bundle, device, dtype, narrow_in_float32=dtype != torch.float32)
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

FORMATS = {"autoencoder": torch.float32, "unet": torch.float32}
"""Of a network's results, where that is not the format that it computes in: only the U-Net reads a ControlNet's."""

ALL_WORK = tuple(work for methods in METHODS.values() for work in methods.values())

PROCESS_BYTES = 400_000_000
"""What Python, torch and the libraries hold before any network is there (measured on Linux, CPU build)."""


class Work(NamedTuple):
    """Something a bundle does: a function of networks without data, its input, and what is held meanwhile."""

    function: Callable[[Any], Any]
    shape: tuple[int, ...]
    held: tuple[torch.Tensor, ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def num_bytes(self) -> int:
        """Of the input and what is held."""
        return math.prod(self.shape) * self.dtype.itemsize + sum(t.numel() * t.itemsize for t in self.held)


def work_of(bundle: Bundle, size: Size3, dtype: torch.dtype, only: Collection[str] = ALL_WORK) -> dict[str, Work]:
    """What a bundle does on volumes of `size` voxels, by name; sampling takes fewer sizes than the autoencoder."""
    with torch.device("meta"):
        networks: dict[str, Any] = {k: lowered(build_network(config), dtype) for k, config in bundle.configs.items()}
    autoencoder, unet, controlnet = (networks.get(kind) for kind in ("autoencoder", "unet", "controlnet"))
    if autoencoder is None:
        return {}
    padded = tuple(-(-n // autoencoder.factor) for n in size)
    latent = (1, autoencoder.config.latent_channels, *padded)
    volume = (1, autoencoder.config.in_channels, *(n * autoencoder.factor for n in padded))
    work = {
        "encode": Work(in_format(autoencoder.encode, dtype), volume),
        "decode": Work(in_format(autoencoder.decode, dtype), latent),
    }
    if unet is None or work.keys() >= set(only):
        return work
    given = condition_tensors(RegionSpan.named("chest"), (1.0, 1.0, 1.0), 0, unet.config)
    conditions = {name: t.to("meta", dtype if t.is_floating_point() else t.dtype) for name, t in given.items()}
    t, residuals, held = torch.empty(1, device="meta"), None, ()
    if controlnet is not None:
        bits = (1, controlnet.config.condition_channels, *volume[2:])
        shared = {name: conditions[name] for name in ("modality",) if name in conditions}
        with torch.device("meta"):
            whole: Any = build_network(controlnet.config).to(dtype)
        embedding = whole.embed_condition(torch.empty(bits, dtype=dtype, device="meta"))
        residuals = whole(torch.empty(latent, dtype=dtype, device="meta"), t, embedding, **shared)
        held = (embedding, *residuals.skips, residuals.middle)
        work["embed labels"] = Work(controlnet.embed_condition, bits, dtype=dtype)
        steer = in_format(lambda x: controlnet(x, t, embedding, **shared), dtype, results=dtype)
        work["steer"] = Work(steer, latent, (embedding,))
    denoise = in_format(lambda x: unet(x, t, residuals=residuals, **conditions), dtype)
    work["denoise"] = Work(denoise, latent, held)
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
    fixed, told = fixed_bytes(bundle, dtype), str(dtype).removeprefix("torch.")
    plans = {}
    for name, work in work_of(bundle, size, dtype, only).items():
        if name not in only:
            continue
        besides = fixed + work.num_bytes
        asked = f"{name} of {size} voxels in {told} within {format_bytes(request.memory)}"
        if request.memory <= besides:
            raise InvalidPlanError(
                f"{asked}: the process, the networks and the input alone take {format_bytes(besides)}"
            )
        try:
            plans[name] = plan_memory(
                work.function,
                work.shape,
                request.memory - besides,
                dtype=work.dtype,
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
                f"{asked}, of which {format_bytes(besides)} go to the process, the networks and the input: "
                f"{error}{f' ({hint})' if hint else ''}"
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

    Otherwise work is one slab, which on a CPU is faster than the bare network, and in half precision nearer to float32;
    in float32 on a GPU it is the bare network. Raises `InvalidPlanError` with the least memory that would do.
    """
    plans = plan_bundle(bundle, size, request, only) if request.memory is not None else {}
    dtype = dtype_of(request)

    def load(kind: str) -> Any:
        methods = {method: plans.get(work) for method, work in METHODS[kind].items() if work in only}
        network = getattr(bundle, kind)
        check_format(network, kind, dtype)
        is_unlimited = ranks is None and request.memory is None and dtype == torch.float32
        is_bare = is_unlimited and next(network.parameters()).device.type != "cpu"
        return network if is_bare else SplitNetwork(network, methods, ranks, dtype, FORMATS.get(kind, dtype))

    return replace(bundle, load=load)


def check_format(network: Any, kind: str, dtype: torch.dtype) -> None:
    """Raise `InvalidRequestError` where a network was loaded in another format than a request computes in."""
    kept = kept_in_float32(network)
    formats = {weights.dtype for name, weights in network.named_parameters() if name not in kept}
    if not formats <= {dtype}:
        wanted = str(dtype).removeprefix("torch.")
        got = ", ".join(sorted(str(each).removeprefix("torch.") for each in formats))
        raise InvalidRequestError(
            f"the request computes in {wanted}, the {kind} of the bundle is in {got}; accepted: "
            f'precision="{got}", or load_bundle(..., dtype=torch.{wanted}, narrow_in_float32=True)'
        )


class SplitNetwork:
    """A network of which some methods run slab by slab, with a plan or without; in all else it is the network.

    It computes in `dtype` on tensors in that format or float32, and gives `results` in another.
    """

    def __init__(
        self,
        network: Any,
        methods: Mapping[str, MemoryPlan | None],
        ranks: Ranks | None,
        dtype: torch.dtype,
        results: torch.dtype,
    ) -> None:
        self._network, self._methods, self._ranks = network, methods, ranks
        self._formats = dtype, results

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        return self._split(found, name) if name in self._methods else found

    def __call__(self, x: torch.Tensor, *inputs: Any, **conditions: Any) -> Any:
        function = self._split(self._network, "__call__") if "__call__" in self._methods else self._network
        return function(x, *inputs, **conditions)

    def _split(self, function: Callable[..., Any], method: str) -> Callable[..., Any]:
        def run(x: torch.Tensor, *inputs: Any, **conditions: Any) -> Any:
            def work(slabs: Any) -> Any:
                return function(slabs, *inputs, **conditions)

            return run_split(in_format(work, *self._formats), x, self._methods[method], self._ranks)

        return run
