"""Time and memory of split networks against MONAI 1.6.1, with the same weights, in one process, alternating.

    python benchmarks/splitting.py [--quick] [--rounds 3] [--only decode ...]

Writes benchmarks/results/splitting-UNIT.json and .md, UNIT being this processor's vector unit. Times are medians of
wall and of CPU seconds over the rounds; memory is the peak above what was resident before the call (Linux). Steps of a
sampling loop are means of five after a first one, on both sides. `--quick` runs everything at half the size, once.
"""
# ruff: noqa: E402

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parity"))
warnings.filterwarnings("ignore")
logging.disable(logging.INFO)

from machine import UNITS, vector_unit
from memory import resident, start_peak
from oracle_networks import drawn_network, oracle_of

from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.unet import UNetConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import decode, encode
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import bundle_of
from maisi.runs.record import processor
from maisi.space.grid import Grid
from maisi.splitting import SlabTensor, gather, kept_between_calls, plan_memory, run_split
from maisi.splitting.precision import in_format, lowered

RESULTS = ROOT / "benchmarks" / "results"
EMBEDDING = "Label embedding, once a sample"
NUM_STEPS = 30
STEPS_TIMED = 5
UPDOWN = {"resblock_updown": True, "num_modalities": 128}


@dataclass
class Contender:
    """One way to do a piece of work."""

    label: str
    run: Callable[[], Any]
    around: Callable[[], AbstractContextManager[None]] | None = None  # a loop, of which the steps after the first count
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass
class Work:
    """One row group of the table; the first contenders are MONAI's."""

    name: str
    contenders: list[Contender]


def measure(contender: Contender) -> None:
    """One timed call, or the mean of some steps of a loop."""
    before, steps = start_peak(), 1 if contender.around is None else STEPS_TIMED
    with contender.around() if contender.around is not None else nullcontext():
        if contender.around is not None:
            contender.run()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            result = contender.run()
        contender.wall_s.append((time.perf_counter() - wall) / steps)
        contender.cpu_s.append((time.process_time() - cpu) / steps)
        contender.peak_bytes = max(contender.peak_bytes, resident("VmHWM") - before)
        del result


def with_splits(oracle: nn.Module, splits: int) -> nn.Module:
    """MONAI's network with that `num_splits` in all its convolutions."""
    for module in oracle.modules():
        if hasattr(module, "num_splits"):
            module.num_splits = splits
    return oracle


def ours_of(network: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of the network in a precision, its weights lying as those of a loaded bundle do."""
    return lowered(copy.deepcopy(network), dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def split(function: Callable[[Any], Any], x: Tensor, parts: int = 1) -> Any:
    """Our network on slabs."""
    result = function(SlabTensor.split(x, parts))
    return gather(*result) if isinstance(result, tuple) else result.gather()


def codec_work(size: int, folder: Path) -> list[Work]:
    """Decode to and encode from `size` voxels an axis, released configuration."""
    drawn = drawn_network(AutoencoderConfig(), torch.float32)
    monai, network, half = oracle_of(drawn), ours_of(drawn), ours_of(drawn, torch.bfloat16)
    latent = torch.randn(1, 4, *[size // 4] * 3, generator=torch.Generator().manual_seed(0))
    volume = torch.rand(1, 1, *[size] * 3, generator=torch.Generator().manual_seed(0))
    budget = max(0.5 * (size / 128) ** 3, 0.15)  # GiB

    def planned(function: Callable[[Any], Any]) -> Callable[[], Tensor]:
        plan = plan_memory(function, latent.shape, int(budget * 2**30), folder=folder)
        return lambda: run_split(function, latent, plan)

    half_decode, half_encode = (in_format(work, torch.bfloat16) for work in (half.decode, half.encode))
    lying = latent.contiguous(memory_format=torch.channels_last_3d)
    decode = [
        Contender("MONAI float32, num_splits 4", lambda: with_splits(monai, 4).decode(latent)),
        Contender("MONAI float32, num_splits 1", lambda: with_splits(monai, 1).decode(latent)),
        Contender("ours unsplit (plain torch), float32", lambda: network.decode(lying)),
        Contender("ours 1 slab, float32", lambda: split(network.decode, latent)),
        Contender("ours 8 slabs, float32", lambda: split(network.decode, latent, 8)),
        Contender(f"ours within {budget:.2f} GiB (disk), float32", planned(network.decode)),
        Contender("ours 8 slabs, bfloat16", lambda: split(half_decode, latent, 8)),
        Contender(f"ours within {budget:.2f} GiB (disk), bfloat16", planned(half_decode)),
    ]
    encode = [
        Contender("MONAI float32, num_splits 4", lambda: with_splits(monai, 4).encode(volume)),
        Contender("MONAI float32, num_splits 1", lambda: with_splits(monai, 1).encode(volume)),
        Contender("ours 8 slabs, float32", lambda: split(network.encode, volume, 8)),
        Contender("ours 8 slabs, bfloat16", lambda: split(half_encode, volume, 8)),
    ]
    return [Work(f"decode to {size}^3", decode), Work(f"encode {size}^3", encode)]


def denoise_work(size: int) -> list[Work]:
    """A U-Net step and a ControlNet + U-Net step on a latent of `size` voxels an axis, released rflow configuration."""
    drawn = drawn_network(UNetConfig(**UPDOWN, spacing=True), torch.float32)
    drawn_controlnet = drawn_network(ControlNetConfig(**UPDOWN), torch.float32)
    monai_unet, monai_controlnet = oracle_of(drawn), oracle_of(drawn_controlnet)
    unet, controlnet = ours_of(drawn), ours_of(drawn_controlnet)
    half_unet, half_controlnet = ours_of(drawn, torch.bfloat16), ours_of(drawn_controlnet, torch.bfloat16)
    latent = torch.randn(1, 4, *[size] * 3, generator=torch.Generator().manual_seed(0))
    bits = (torch.rand(1, 8, *[4 * size] * 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    t, modality, spacing = torch.tensor([500.0]), torch.tensor([1]), torch.full((1, 3), 100.0)
    embedding = split(controlnet.embed_condition, bits)

    def ours(net: Any, steer: Any, dtype: torch.dtype) -> Tensor:
        x = SlabTensor.split(latent).to(dtype)
        residuals = None if steer is None else steer(x, t, embedding.to(dtype), modality=modality)
        return net(x, t, spacing=spacing.to(dtype), modality=modality, residuals=residuals).float().gather()

    def theirs(steer: bool) -> Tensor:
        down, middle = None, None
        if steer:
            down, middle = monai_controlnet(latent, t, bits, class_labels=modality)
        return monai_unet(
            latent,
            t,
            class_labels=modality,
            spacing_tensor=spacing,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )

    def steps(*contenders: Contender) -> list[Contender]:
        """Each as a step of a sampling loop; ours keeps what generating keeps."""
        for each in contenders:
            each.around = nullcontext if each.label.startswith("MONAI") else kept_between_calls
        return list(contenders)

    return [
        Work(
            f"U-Net step, {size}^3 latent",
            steps(
                Contender("MONAI float32", lambda: theirs(False)),
                Contender("ours float32", lambda: ours(unet, None, torch.float32)),
                Contender("ours bfloat16", lambda: ours(half_unet, None, torch.bfloat16)),
            ),
        ),
        Work(
            f"ControlNet + U-Net step, {size}^3 latent (ours: label embedding computed once for all steps)",
            steps(
                Contender("MONAI float32", lambda: theirs(True)),
                Contender("ours float32", lambda: ours(unet, controlnet, torch.float32)),
                Contender("ours bfloat16", lambda: ours(half_unet, half_controlnet, torch.bfloat16)),
            ),
        ),
        Work(
            f"{EMBEDDING}, {size}^3 latent (MONAI embeds in every step)",
            [
                Contender("ours float32", lambda: split(controlnet.embed_condition, bits)),
                Contender("ours bfloat16", lambda: split(half_controlnet.embed_condition, bits.bfloat16())),
            ],
        ),
    ]


def whole_sampling(works: list[Work]) -> list[str]:
    """Markdown rows: ControlNet + U-Net over all steps of a sample, with the label embedding that ours makes once."""
    found = [next((w for w in works if w.name.startswith(name)), None) for name in ("ControlNet + U-Net", EMBEDDING)]
    step, embedding = found
    if step is None or embedding is None:
        return []
    monai, *ours = step.contenders
    whole = NUM_STEPS * statistics.median(monai.wall_s)
    lines = [f"### ControlNet + U-Net, {NUM_STEPS} steps", "", "| | wall s | x faster |", "|---|---|---|"]
    lines.append(f"| {monai.label} | {whole:.1f} | 1.00 |")
    for each, once in zip(ours, embedding.contenders, strict=True):
        own = NUM_STEPS * statistics.median(each.wall_s) + statistics.median(once.wall_s)
        lines.append(f"| {each.label} | {own:.1f} | {whole / own:.2f} |")
    return [*lines, ""]


def in_hu() -> dict[str, float]:
    """Deviations of the packaged bundle in bfloat16 from float32, of a phantom and of a generated chest: rms, HU."""
    grid = Grid.centered((96, 80, 64), (4.0, 4.0, 4.0))
    rng = np.random.default_rng(0)
    volume = render_phantom(draw_phantom("chest", grid, rng), rng)
    found: dict[str, list[np.ndarray]] = {"decode": [], "encode and decode": [], "generate": []}
    latent = None
    for precision in ("float32", "bfloat16"):
        request = GenerateRequest(compute=Compute(precision=precision))  # type: ignore[arg-type]
        bundle = bundle_of(request)
        autoencoder = fit(bundle, request.compute, lambda networks: None).autoencoder
        encoded = encode(autoencoder, volume)
        latent = latent or encoded
        found["decode"].append(decode(autoencoder, latent).array)
        found["encode and decode"].append(decode(autoencoder, encoded).array)
        found["generate"].append(next(generate(request, bundle)).volume.array)
    return {what: rms(half.astype(np.float64) - whole) for what, (whole, half) in found.items()}


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def accuracy(latent_size: int) -> dict[str, float]:
    """Deviation of a decode from float64: the largest relative to the range, the rms relative to the spread."""
    network = drawn_network(AutoencoderConfig(), torch.float32)
    latent = torch.randn(1, 4, *[latent_size] * 3, generator=torch.Generator().manual_seed(0))
    truth = copy.deepcopy(network).double().decode(latent.double())
    results = {
        "plain torch float32": network.decode(latent),
        "8 slabs float32": split(network.decode, latent, 8),
        "8 slabs bfloat16": split(in_format(ours_of(network, torch.bfloat16).decode, torch.bfloat16), latent, 8),
    }
    spread = truth.max() - truth.min()
    errors = {}
    for name, result in results.items():
        errors[f"{name}: largest / range"] = float((result.double() - truth).abs().max() / spread)
        errors[f"{name}: rms / std"] = float((result.double() - truth).square().mean().sqrt() / truth.std())
    errors |= {f"ct-small {what}, bfloat16 against float32: rms HU": hu for what, hu in in_hu().items()}
    return errors


def table(work: Work) -> str:
    """Markdown rows, with speed relative to the MONAI contenders."""
    references = [c for c in work.contenders if c.label.startswith("MONAI")]
    heads = [f"x faster than {c.label.removeprefix('MONAI float32, ')}" for c in references]
    lines = [
        f"### {work.name}",
        "",
        f"| | wall s | CPU s | peak GiB | {' | '.join(heads)} |",
        "|---" * (4 + len(heads)) + "|",
    ]
    for contender in work.contenders:
        wall, cpu = statistics.median(contender.wall_s), statistics.median(contender.cpu_s)
        ratios = [f"{statistics.median(c.wall_s) / wall:.2f}" for c in references]
        peak = contender.peak_bytes / 2**30
        lines.append(f"| {contender.label} | {wall:.2f} | {cpu:.2f} | {peak:.2f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def save(name: str, works: list[Work], errors: dict[str, float], rounds: int, load: tuple[float, ...]) -> None:
    """The measurements as JSON and Markdown."""
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": f"{processor()}, {UNITS[vector_unit()]}",
        "load_before": load,
        "load_after": os.getloadavg(),
        "rounds": rounds,
    }
    raw = {
        "machine": machine,
        "accuracy": errors,
        "work": {
            work.name: {
                c.label: {"wall_s": c.wall_s, "cpu_s": c.cpu_s, "peak_bytes": c.peak_bytes} for c in work.contenders
            }
            for work in works
        },
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    text = [f"## Splitting against MONAI 1.6.1, {machine['cpu']}", "", told(machine), ""]
    text += [table(work) + "\n" for work in works if work.contenders[0].wall_s]
    text += whole_sampling([work for work in works if work.contenders[0].wall_s])
    text += ["### Accuracy of a decode against float64", "", "| | |", "|---|---|"]
    text += [f"| {key} | {value:.1e} |" for key, value in errors.items()]
    (RESULTS / f"{name}.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def told(machine: dict[str, Any]) -> str:
    """The circumstances of a measurement in a line."""
    load = " to ".join(f"{machine[f'load_{when}'][0]:.1f}" for when in ("before", "after"))
    return f"torch {machine['torch']}, {machine['threads']} threads, rounds: {machine['rounds']}, load {load}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half the size, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="words that the names of the work must contain")
    parser.add_argument("--folder", type=Path, default=Path("slabs"), help="for tensors on disk")
    arguments = parser.parse_args()
    load = os.getloadavg()
    rounds = 1 if arguments.quick else arguments.rounds
    name = f"splitting-{vector_unit()}{'-quick' if arguments.quick else ''}"
    with torch.inference_mode():
        works = denoise_work(16 if arguments.quick else 32)  # first, in a heap without holes, as a sampling process has
        works += codec_work(64 if arguments.quick else 128, arguments.folder)
        works = [w for w in works if not arguments.only or any(word in w.name for word in arguments.only)]
        for work in works:
            for _ in range(rounds):
                for contender in work.contenders:
                    measure(contender)
                    print(f"{work.name}: {contender.label}: {contender.wall_s[-1]:.2f} s", file=sys.stderr, flush=True)
        save(name, works, accuracy(12), rounds, load)


if __name__ == "__main__":
    main()
