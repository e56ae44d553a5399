"""What a GPU makes of the networks: parity with MONAI 1.6.1, exactness, time and memory, in one command.

    python benchmarks/gpu.py [--device cuda] [--small] [--out FILE]

Takes under 6 minutes on an H100 and needs no network connection. Each section has a time budget; what does not fit is
skipped and says so, a figure that fails says why, and the rest goes on. After every section it writes FILE (by default
benchmarks/results/gpu-NAME.json, NAME being the GPU's) and its tables beside it as .md, which it prints at the end.
Without MONAI ours is measured alone. `--small` runs every section with tiny networks; with `--device cpu` that takes a
minute, and only what it says of exactness means anything.

Weights are random, of the released sizes. Seconds are medians of three calls after a warm-up; a call of more than four
seconds counts by itself. Peaks are torch's, weights and inputs included; `held` is what was there before.
"""
# ruff: noqa: E402

import argparse
import copy
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

START = time.monotonic()

import numpy as np
import psutil
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_measure import Gauge, Row, Section, deviation, machine, table, tf32, told, version_of
from gpu_networks import (
    RELEASED_SPLITS,
    SMALL,
    Networks,
    as_released,
    ask_monai,
    autocast,
    bits_of,
    bundle_of,
    conditions_of,
    decode_in_windows,
    drawn,
    monai_of,
    normal,
    released,
    residuals_of,
)

from maisi.bundle.bundle import Bundle
from maisi.compute.autocast import in_autocast
from maisi.compute.compute import Compute
from maisi.compute.fit import fit, plan, split_network
from maisi.diffusion.denoiser import denoiser, predict
from maisi.diffusion.sampler import sample
from maisi.phantom.draw import draw_phantom
from maisi.pipelines.codec import rehearse_decode
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap
from maisi.splitting import SlabTensor
from maisi.splitting.precision import lowered

RESULTS = Path(__file__).resolve().parent / "results"
TOLERANCE = 1e-4  # largest difference over the largest value, float32 without TF32
TOLERANCE_HU = 1.0
FULL = [(torch.float32, False), (torch.float32, True), (torch.float16, False), (torch.bfloat16, False)]
FRACTION = 0.85  # of the device's memory that a limited run may use; of its host's free memory the half


@dataclass(frozen=True)
class Sizes:
    """How large the work is, in latent voxels an axis but for volumes."""

    parity: int
    split: int
    decode: tuple[int, ...]
    step: int
    graph: int
    memory: tuple[int, int, tuple[int, ...]]  # latent, bytes in half precision and float32, of the host
    volumes: tuple[int, ...]
    steps: int


GB = 10**9
LARGE = Sizes(16, 32, (32, 64, 128), 128, 32, (64, (4 * GB, 8 * GB), 16 * GB), (256, 512), 4)
TINY = Sizes(8, 8, (4, 6), 4, 4, (8, (2 * GB, 2 * GB), GB), (16,), 2)


@dataclass
class Case:
    """What all sections share."""

    networks: Networks
    sizes: Sizes

    @property
    def device(self) -> torch.device:
        return self.networks.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def formats(self) -> list[tuple[torch.dtype, bool]]:
        """Number formats to measure, with TF32 or without; a CPU has neither float16 nor TF32."""
        return FULL if self.is_cuda else [FULL[0], FULL[3]]

    def compute(self, dtype: torch.dtype, **more: Any) -> Compute:
        """Settings for this device."""
        return Compute(device=str(self.device), precision=str(dtype).removeprefix("torch."), **more)

    def fitted(self, dtype: torch.dtype, work: Callable[[Bundle], object] | None = None, **more: Any) -> Bundle:
        """The random bundle, its networks as a request in that precision would have them."""
        return fit(self.networks.bundle(dtype), self.compute(dtype, **more), work or (lambda bundle: None))


def named(dtype: torch.dtype, is_tf32: bool) -> str:
    """A number format as the tables call it."""
    return f"{str(dtype).removeprefix('torch.')}{', TF32' if is_tf32 else ''}"


def judged(label: str, found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> Row:
    """How far a result is from another, and whether that is rounding."""
    apart = deviation(found, expected)
    return {"label": label, **apart, "tolerance": tolerance, "within": apart["largest"] <= tolerance}


def has_monai() -> bool:
    """Whether there is something to compare with."""
    return version_of("monai") is not None


# Exactness ------------------------------------------------------------------------------------------------------------


def parity(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Every network against MONAI's with the same weights, float32 without TF32, no residual zero."""
    if not has_monai():
        yield {"label": "MONAI", "skipped": "not installed"}
        return
    n, device = case.sizes.parity, case.device
    with tf32(False):
        ours: Any = case.networks.get("autoencoder")
        theirs: Any = monai_of(ours)
        image, latent = normal(1, 1, *[n * ours.factor] * 3, device=device), normal(1, 4, n, n, n, device=device)
        (mean, log_variance), (their_mean, their_sigma) = ours.encode(image), theirs.encode(image)
        yield judged("autoencoder, encode: mean", mean, their_mean)
        yield judged("autoencoder, encode: deviation", (0.5 * log_variance).exp(), their_sigma)
        yield judged("autoencoder, decode", ours.decode(latent), theirs.decode(latent))
        del theirs
        t = torch.tensor([500.0], device=device)
        for name in ("unet", "all-unet", "context-unet"):
            unet: Any = case.networks.get(name)
            conditions, theirs = conditions_of(unet.config, device), monai_of(unet)
            residuals = residuals_of(unet.config, n, device)
            given = tuple(each.clone() for each in residuals.skips), residuals.middle
            label = f"U-Net with {', '.join(conditions)}"
            yield judged(label, unet(latent, t, **conditions), ask_monai(theirs, latent, t, conditions))
            found, expected = (
                unet(latent, t, residuals=residuals, **conditions),
                ask_monai(theirs, latent, t, conditions, given),
            )
            yield judged(f"{label}, residuals", found, expected)
            del theirs
        case.networks.forget("all-unet", "context-unet")
        controlnet: Any = case.networks.get("controlnet")
        theirs, bits = monai_of(controlnet), bits_of(controlnet.config, n, device)
        modality = torch.tensor([1], device=device)
        found = controlnet(latent, t, controlnet.embed_condition(bits), modality=modality, scale=0.7)
        skips, middle = theirs(latent, t, bits, conditioning_scale=0.7, class_labels=modality)
        yield judged("ControlNet, residuals of the middle", found.middle, middle)
        apart = [judged("", one, other) for one, other in zip(found.skips, skips, strict=True)]
        worst = max(apart, key=lambda row: row["largest"])
        yield worst | {"label": f"ControlNet, worst of {len(apart)} residuals of skips"}


def split(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Networks on slabs against the same on whole tensors, float32 without TF32."""
    n, device = case.sizes.split, case.device
    autoencoder: Any = case.networks.get("autoencoder")
    unet: Any = case.networks.get("unet")
    t, conditions = torch.tensor([500.0], device=device), conditions_of(unet.config, device)
    latent, image = normal(1, 4, n, n, n, device=device), normal(1, 1, *[n] * 3, device=device)
    works: dict[str, tuple[Callable[[Any], Any], Tensor]] = {
        "decode": (autoencoder.decode, latent),
        "encode": (lambda x: autoencoder.encode(x)[0], image),
        "U-Net step": (lambda x: unet(x, t, **conditions), latent),
    }
    uneven = (1, n // 2 - 1, 2, n - n // 2 - 2)
    with tf32(False):
        for name, (function, x) in works.items():
            whole = function(x)
            for label, how in {"1 slab": {"parts": 1}, "8 slabs": {"parts": 8}, "uneven": {"sizes": uneven}}.items():
                yield judged(f"{name}, {label}", function(SlabTensor.split(x, **how)).gather(), whole)


def same_seed(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Samples of a tiny bundle of one seed: on the CPU, on the device, and there again; HU."""
    networks = {name: drawn(SMALL[name], torch.device("cpu")) for name in ("autoencoder", "unet", "controlnet")}
    on_device = {name: copy.deepcopy(network).to(case.device) for name, network in networks.items()}
    request = {"size": (16, 16, 16), "spacing": (20.0, 20.0, 20.0), "steps": 3, "seed": 3}
    places = (("cpu", networks), *[(str(case.device), on_device)] * 2)
    with tf32(False):
        here, *there = (
            next(generate(GenerateRequest(**request, compute=Compute(device=at, precision="float32")), bundle_of(nets)))
            for at, nets in places
        )
    apart = [float(np.abs(each.volume.array - here.volume.array).max()) for each in there]
    assert all(each.labels is not None and here.labels is not None for each in there)
    yield {
        "label": f"CPU and {case.device.type}",
        "largest_hu": apart[0],
        "spread_hu": float(here.volume.array.std()),
        "tolerance": TOLERANCE_HU,
        "within": apart[0] <= TOLERANCE_HU,
        "same_labels": all(np.array_equal(each.labels.array, here.labels.array) for each in there),
    }
    again = float(np.abs(there[1].volume.array - there[0].volume.array).max())
    yield {"label": f"{case.device.type} and again", "largest_hu": again, "within": again <= TOLERANCE_HU}


def waits(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Where a sampling loop of tiny networks makes the host wait for the GPU; once, at its end, is due."""
    if not case.is_cuda:
        yield {"label": "sampling loop", "skipped": "needs a GPU"}
        return
    for dtype in (torch.float32, torch.bfloat16):
        nets = {name: lowered(drawn(SMALL[name], case.device), dtype) for name in ("autoencoder", "unet", "controlnet")}
        bundle = fit(bundle_of(nets), case.compute(dtype), lambda bundle: None)
        told_unet = conditions_of(bundle.unet.config, case.device)
        conditions = {name: c.to(dtype) if c.is_floating_point() else c for name, c in told_unet.items()}
        embedding = bundle.controlnet.embed_condition(bits_of(bundle.controlnet.config, 8, case.device))
        denoise = denoiser(bundle.unet, bundle.controlnet, conditions=conditions, embedding=embedding)
        noise = normal(1, 4, 8, 8, 8, device=case.device)
        for solver in ("multistep", "euler"):
            work = partial(sample, denoise, bundle.scheduler, noise, 4, solver=solver)
            work()
            found = places_of_waits(work)
            yield {"label": f"{solver}, 4 steps, {named(dtype, False)}", "waits": len(found), "places": str(found)}


def places_of_waits(work: Callable[[], Any]) -> list[str]:
    """Where a call made the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as told_of:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in told_of if "called a synchronizing" in str(w.message)]


# Time and memory ------------------------------------------------------------------------------------------------------


def decode(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Decoding, ours and MONAI's, in every format; how far the smallest is from float32 without TF32."""
    theirs: Any = monai_of(case.networks.get("autoencoder")) if has_monai() else None
    smallest, exact, factor = case.sizes.decode[0], None, case.networks.get("autoencoder").factor
    for n, rounds in zip(case.sizes.decode, (3, 2, 1), strict=False):
        latent = normal(1, 4, n, n, n, device=case.device)
        formats = case.formats()
        for dtype, is_tf32 in formats if rounds > 1 else formats[::-1]:  # of the largest the slowest last
            about: Row = {"voxels": f"{factor * n}^3", "precision": named(dtype, is_tf32)}
            measured = partial(gauge.row, rounds=rounds, **about)
            with tf32(is_tf32):
                contenders = {"ours": case.fitted(dtype).autoencoder.decode}
                if dtype == torch.bfloat16:
                    network = case.networks.get("autoencoder", dtype)
                    contenders["ours, one slab"] = split_network("autoencoder", network, None, None, dtype).decode
                for label, function in contenders.items():
                    row = measured(f"decode, {label}", partial(function, latent))
                    if n == smallest and "seconds" in row:
                        found = function(latent)
                        exact = found if exact is None else exact
                        row["rms_from_float32"] = deviation(found, exact)["rms"]
                    yield row
                yield from limited_decode(measured, case, n, dtype, about)
                if theirs is not None:
                    yield from monai_decode(measured, case, theirs, latent, dtype, about)


def limited_decode(measured: Callable[..., Row], case: Case, n: int, dtype: torch.dtype, about: Row) -> Iterator[Row]:
    """The largest decode within a part of the GPU's memory, for it need not fit as a whole."""
    if not case.is_cuda or n != max(case.sizes.decode):
        return
    factor: int = case.networks.get("autoencoder").factor
    latent, work = normal(1, 4, n, n, n, device=case.device), partial(rehearse_decode, (factor * n,) * 3)
    limits = limits_of(case.device)
    try:
        function = partial(case.fitted(dtype, work, **limits).autoencoder.decode, latent)
    except Exception as error:  # noqa: BLE001 (no plan: a row, not the end of the section)
        yield {"label": "decode, ours within memory", **about, "error": told(error)}
        return
    yield measured("decode, ours within memory", function, limit_bytes=limits["memory"])


def limits_of(device: torch.device) -> dict[str, int]:
    """What a run that need not fit into the GPU as a whole may use."""
    total = torch.cuda.get_device_properties(device).total_memory
    return {"memory": int(FRACTION * total), "host_memory": psutil.virtual_memory().available // 2}


def monai_decode(
    measured: Callable[..., Row], case: Case, theirs: Any, latent: Tensor, dtype: torch.dtype, about: Row
) -> Iterator[Row]:
    """MONAI's decode as released and with the fewest splits that fit; the largest volume also in windows."""

    def row(label: str, splits: int, function: Callable[[], Any], limit_s: float) -> Row:
        with as_released(theirs, dtype, splits):
            return measured(label, function, limit_s=limit_s, num_splits=splits)

    whole, released_splits = partial(theirs.decode_stage_2_outputs, latent), min(RELEASED_SPLITS, latent.shape[2] // 3)
    if not case.is_cuda or latent.shape[2] < max(case.sizes.decode):
        yield row("decode, MONAI as released", released_splits, whole, 20.0)
    elif dtype != torch.float16:
        return  # as released is float16, and the time is short
    else:
        yield row("decode, MONAI as released, in windows", released_splits, decode_in_windows(theirs, latent), 45.0)
        needed = 3 * 2 * 128 * (4 * latent.shape[2]) ** 3  # tensors of 500 voxels and more are joined on the host
        if psutil.virtual_memory().available < needed:
            yield {"label": "decode, MONAI whole", **about, "skipped": f"needs {needed >> 30} GiB of host memory"}
            return
    for splits in (1, 2, 4, 8, 16):
        found = row("decode, MONAI, fewest splits that fit", splits, whole, 15.0)
        if found.get("error") != "out of memory" or splits == 16:
            yield found
            return


def steps(gauge: Gauge, case: Case) -> Iterator[Row]:
    """A step of the U-Net, and with the ControlNet; ours embeds the label map once, MONAI in every step."""
    n, device = case.sizes.step, case.device
    unet_config: Any = case.networks.get("unet").config
    t, x = torch.tensor([500.0], device=device), normal(1, 4, n, n, n, device=device)
    bits = bits_of(case.networks.get("controlnet").config, n, device)
    conditions = conditions_of(unet_config, device)
    monai_unet = monai_of(case.networks.get("unet")) if has_monai() else None
    monai_controlnet = monai_of(case.networks.get("controlnet")) if has_monai() else None
    for dtype, is_tf32 in reversed(case.formats()):  # the slowest last
        about: Row = {"latent": f"{n}^3", "precision": named(dtype, is_tf32)}
        with tf32(is_tf32):
            bundle = case.fitted(dtype)
            ours = {name: c.to(dtype) if c.is_floating_point() else c for name, c in conditions.items()}
            yield gauge.row("U-Net, ours", partial(bundle.unet, x, t, **ours), **about)
            if monai_unet is not None:
                with autocast(device, dtype):
                    yield gauge.row("U-Net, MONAI", partial(ask_monai, monai_unet, x, t, conditions), **about)
            embed = partial(bundle.controlnet.embed_condition, bits.to(dtype))
            yield gauge.row("label embedding, ours, once a sample", embed, **about)
            embedding = embed()
            both = partial(predict, bundle.unet, bundle.controlnet, x, t, conditions=ours, embedding=embedding)
            yield gauge.row("ControlNet and U-Net, ours", both, **about)
            del embedding, both, embed
            if monai_unet is not None and monai_controlnet is not None:
                work = partial(monai_steered, monai_unet, monai_controlnet, x, t, bits, conditions)
                with autocast(device, dtype):
                    yield gauge.row("ControlNet and U-Net, MONAI", work, **about)


def monai_steered(
    unet: nn.Module, controlnet: nn.Module, x: Tensor, t: Tensor, bits: Tensor, conditions: dict[str, Tensor]
) -> Tensor:
    """A step of MONAI's pair."""
    residuals = controlnet(x, t, bits, class_labels=conditions.get("modality"))
    return ask_monai(unet, x, t, conditions, residuals)


def memory(gauge: Gauge, case: Case) -> Iterator[Row]:
    """A decode within limits: what was planned, what was taken, and that the result is the same."""
    n, (half_bytes, full_bytes), host_bytes = case.sizes.memory
    latent = normal(1, 4, n, n, n, device=case.device)
    factor: int = case.networks.get("autoencoder").factor
    work = partial(rehearse_decode, (factor * n,) * 3)
    for dtype, limit in ((torch.bfloat16, half_bytes), (torch.float32, full_bytes)):
        with tf32(False):
            whole = case.fitted(dtype).autoencoder.decode(latent)
            for more in ({}, {"host_memory": host_bytes}) if case.is_cuda else ({},):
                about: Row = {"voxels": f"{factor * n}^3", "precision": named(dtype, False), "limit_bytes": limit}
                label = "decode, host memory too" if more else "decode"
                try:
                    compute = case.compute(dtype, memory=limit, **more)
                    (planned,) = plan(case.networks.bundle(dtype), compute, work).values()
                    function = case.fitted(dtype, work, memory=limit, **more).autoencoder.decode
                except Exception as error:  # noqa: BLE001 (no plan: a row, not the end of the section)
                    yield {"label": label, **about, "error": told(error)}
                    continue
                row = gauge.row(label, partial(function, latent), rounds=1, **about)
                row |= {"planned_bytes": planned.peak_bytes, "parts": planned.parts}
                if row.get("peak_bytes") is not None:
                    row["above_bytes"] = row["peak_bytes"] - row["held_bytes"]
                    own = row["above_bytes"] + weights_bytes(case.networks.bundle(dtype))
                    row["kept"] = own <= limit and row["above_bytes"] <= planned.peak_bytes
                if "seconds" in row:
                    row["rms_from_whole"] = deviation(function(latent), whole)["rms"]
                yield row


def weights_bytes(bundle: Bundle) -> int:
    """Bytes of all weights of a bundle; those of other bundles do not count against its limit."""
    networks = [getattr(bundle, name) for name in bundle.kinds]
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def end_to_end(gauge: Gauge, case: Case) -> Iterator[Row]:
    """`maisi.generate` with random networks after a given label map: seconds of each stage, peak of all."""
    with tempfile.TemporaryDirectory() as folder:
        for n in case.sizes.volumes:
            path = write_phantom(n, Path(folder))
            is_largest = case.is_cuda and n == max(case.sizes.volumes)
            for limits in ({}, limits_of(case.device)) if is_largest else ({},):
                compute = case.compute(torch.bfloat16, **limits)
                request = GenerateRequest(labels=path, steps=case.sizes.steps, compute=compute, force=True)
                stages: dict[str, float] = {}
                work = partial(drawn_sample, request, case.networks.bundle(torch.bfloat16), stages)
                about: Row = {"steps": case.sizes.steps, "precision": "bfloat16", "limit_bytes": limits.get("memory")}
                row = gauge.row(f"{n}^3", work, rounds=1, limit_s=60.0, **about)
                yield row | {f"{name}_s": round(seconds, 3) for name, seconds in stages.items()}


def write_phantom(n: int, folder: Path) -> Path:
    """A chest of n^3 voxels in 384 mm as a file; drawn small, each voxel repeated."""
    few = min(n, 64)
    small = draw_phantom("chest", Grid.centered((few,) * 3, (384 / few,) * 3), np.random.default_rng(0))
    array = small.array
    for axis in range(3):
        array = array.repeat(n // few, axis)
    path = folder / f"labels-{n}.nii"
    write_labels(LabelMap(array, Grid.centered((n,) * 3, (384 / n,) * 3)), path)
    return path


def drawn_sample(request: GenerateRequest, bundle: Bundle, stages: dict[str, float]) -> None:
    """One sample; leaves the seconds of each stage, those before the first as "prepare"."""
    began = {"": time.perf_counter()}
    stages.clear()

    def on_stage(stage: str, done: int, total: int) -> None:
        torch.cuda.synchronize() if request.compute.device != "cpu" and done in (0, total) else None
        now = time.perf_counter()
        if not stages:
            stages["prepare"] = now - began[""]
        began.setdefault(stage, now)
        stages[stage] = now - began[stage]

    next(generate(request, bundle, on_stage))


# What else a GPU can do -----------------------------------------------------------------------------------------------


def variants(gauge: Gauge, case: Case) -> Iterator[Row]:
    """Other ways for the bare networks: layouts, all weights in bfloat16, a CUDA graph, torch.compile."""
    dtype, device, n = torch.bfloat16, case.device, case.sizes.graph
    alone = dtype if case.is_cuda else torch.float32  # a CPU pools in no other
    half: Any = case.networks.get("unet", dtype)
    plain, conditions = copy.deepcopy(half).to(alone), conditions_of(half.config, device)
    for_plain = {name: c.to(alone) if c.is_floating_point() else c for name, c in conditions.items()}
    layouts = {"channels last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
    for size in dict.fromkeys((n, case.sizes.step)):
        x, t = normal(1, 4, size, size, size, device=device), torch.tensor([500.0], device=device)
        about: Row = {"latent": f"{size}^3", "precision": "bfloat16"}
        for layout, memory_format in (
            ("channels last", torch.channels_last_3d),
            ("contiguous", torch.contiguous_format),
        ):
            network = copy.deepcopy(half).to(memory_format=memory_format)
            work = in_autocast(partial(network, **conditions), device.type, dtype, torch.float32)
            given = x.contiguous(memory_format=memory_format)
            yield gauge.row(f"U-Net in autocast, {layout}", partial(work, given, t), **about)
        about = about | {"precision": named(alone, False)}
        yield gauge.row("U-Net, all weights alike", partial(plain, x.to(alone), t, **for_plain), **about)
        if case.is_cuda:
            yield graph_row(gauge, partial(plain, **for_plain), x.to(alone), t, about)
        else:
            yield {"label": "U-Net, all weights alike, CUDA graph", "skipped": "needs a GPU"}
    latent = normal(1, 4, 2 * n, 2 * n, 2 * n, device=device)
    for layout, memory_format in layouts.items():
        network = copy.deepcopy(case.networks.get("autoencoder", dtype)).to(memory_format=memory_format)
        work = in_autocast(network.decode, device.type, dtype, torch.float32)
        given = latent.contiguous(memory_format=memory_format)
        about = {"latent": f"{2 * n}^3", "precision": "bfloat16"}
        yield gauge.row(f"decode in autocast, {layout}", partial(work, given), **about)
    yield compiled_row(gauge, case, plain, for_plain)


def graph_row(gauge: Gauge, function: Callable[..., Tensor], x: Tensor, t: Tensor, about: Row) -> Row:
    """A step replayed from a CUDA graph."""
    label = "U-Net, all weights alike, CUDA graph"
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function(x, t)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function(x, t)
    except Exception as error:  # noqa: BLE001 (a figure that fails must not take the others with it)
        return {"label": label, **about, "error": told(error)}
    return gauge.row(label, graph.replay, **about)


def compiled_row(gauge: Gauge, case: Case, network: nn.Module, conditions: dict[str, Tensor]) -> Row:
    """A step compiled for the GPU, as one graph; on a CPU it is only traced."""
    how: dict[str, Any] = {"mode": "reduce-overhead"} if case.is_cuda else {"backend": "eager"}
    compiled = torch.compile(network, fullgraph=True, **how)
    n, dtype = case.sizes.graph, next(network.parameters()).dtype
    x, t = normal(1, 4, n, n, n, device=case.device).to(dtype), torch.tensor([500.0], device=case.device)
    told_how = ", ".join(f"{key} {value}" for key, value in how.items())
    about: Row = {"latent": f"{n}^3", "precision": named(dtype, False)}
    seconds: list[float] = []

    def step() -> Any:
        start = time.perf_counter()
        found = compiled(x, t, **conditions)
        seconds.append(time.perf_counter() - start)
        return found

    first = gauge.row("", step, rounds=1, limit_s=60.0)
    label = f"U-Net, all weights alike, torch.compile ({told_how})"
    if "seconds" not in first:
        return first | {"label": label, **about}
    return gauge.row(label, step, **about) | {"first_call_s": round(seconds[0], 1)}


# The command ----------------------------------------------------------------------------------------------------------


def all_sections(device: str) -> list[Section]:
    """In the order of their weight; on a GPU 330 s together, on a CPU, which may be busy, ten times that."""
    scale = 1 if device == "cuda" else 10
    rows: list[tuple[Callable[..., Iterator[Row]], str, float]] = [
        (parity, "Parity with MONAI, float32 without TF32", 25),
        (split, "Split equals whole, float32 without TF32", 20),
        (same_seed, "One seed on the CPU and here, float32 without TF32", 15),
        (waits, "Waits for the GPU in a sampling loop", 5),
        (decode, "Decode", 120),
        (steps, "Steps of a sampling loop", 40),
        (memory, "Within a limit of memory", 25),
        (end_to_end, "maisi.generate after a label map", 50),
        (variants, "Other ways for the bare networks", 30),
    ]
    return [Section(function.__name__, title, scale * budget_s, function) for function, title, budget_s in rows]


def write(path: Path | None, about: dict[str, Any], sections: list[Section]) -> None:
    """All that was found so far as JSON, and as Markdown beside it; each written beside and renamed."""
    if path is None:
        return
    data = {"machine": about, "seconds": round(time.monotonic() - START, 1)}
    text = json.dumps(data | {"sections": {section.name: section.as_data() for section in sections}}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, content in ((path, text), (path.with_suffix(".md"), markdown(about, sections))):
        beside = place.with_name(f"{place.name}.{os.getpid()}")
        beside.write_text(content + "\n")
        beside.replace(place)


def markdown(about: dict[str, Any], sections: list[Section]) -> str:
    """All tables."""
    versions = ", ".join(f"{name} {about.get(name)}" for name in ("torch", "cuda", "cudnn", "driver", "monai"))
    head = f"### On {about['device']} ({versions})"
    return "\n".join([head, "", *(table(section) for section in sections)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="tiny networks and sizes")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # large slabs leave no holes
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    device = torch.device(arguments.device)
    if device.type == "cpu" and not arguments.small:
        parser.error("released sizes are for a GPU; accepted with --device cpu: --small")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use; accepted: --device cpu --small")
    about = machine(device) | {"size": "small" if arguments.small else "released"}
    about["allocator"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    out = arguments.out or (RESULTS / f"gpu-{name}.json" if device.type == "cuda" and not arguments.small else None)

    case = Case(Networks(SMALL if arguments.small else released(), device), TINY if arguments.small else LARGE)
    sections, gauge = all_sections(device.type), Gauge(device, rounds=1 if arguments.small else 3)
    spare = START - time.monotonic()  # imports are counted, too
    with torch.inference_mode():
        for section in sections:
            print(f"{section.name}: {section.budget_s + spare:.0f} s", file=sys.stderr, flush=True)
            section.run(gauge, section.budget_s + spare, case)
            spare += section.budget_s - section.seconds
            write(out, about, sections)
    print(markdown(about, sections))
    print(f"{time.monotonic() - START:.0f} s in all{f', {out}' if out else ''}", file=sys.stderr)


if __name__ == "__main__":
    main()
