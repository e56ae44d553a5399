"""Time and error of single float32 convolutions: direct (torch's oneDNN), Winograd by torch, by the compiled kernel.

    python benchmarks/convolutions.py [--rounds 7]

Writes benchmarks/results/convolutions-UNIT.json and .md, UNIT being this processor's vector unit. Channels last,
3 x 3 x 3 taps, alternating, medians of wall milliseconds; transforming the weights is timed apart. The sizes are those
of a step of the released U-Net at a 32^3 latent, of slabs of the released decoder and of the packaged bundle. Errors
are the largest, relative to the largest value, against float64.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import UNITS, vector_unit
from torch import Tensor

from maisi.splitting.cpu import compiled, kernels, winograd

RESULTS = Path(__file__).resolve().parent / "results"
ONES = (1, 1, 1)
CASES = [  # channels in and out, voxels
    (64, 64, (32, 32, 32)),
    (128, 128, (32, 32, 32)),
    (192, 64, (32, 32, 32)),
    (128, 128, (16, 16, 16)),
    (256, 256, (16, 16, 16)),
    (256, 256, (8, 8, 8)),
    (512, 512, (8, 8, 8)),
    (64, 64, (16, 128, 128)),
    (64, 64, (4, 128, 128)),
    (256, 256, (8, 32, 32)),
    (32, 32, (48, 40, 40)),
    (64, 64, (16, 16, 8)),
]


def milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def measured(channels: int, out_channels: int, size: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Medians of the rounds after a first, and errors."""
    draw = torch.Generator().manual_seed(0)
    x = F.silu(torch.randn(1, channels, *size, generator=draw)).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(out_channels, channels, 3, 3, 3, generator=draw) / math.sqrt(27 * channels)
    weight, bias = weight.contiguous(memory_format=torch.channels_last_3d), torch.randn(out_channels, generator=draw)
    transformed = winograd.transform_weight(weight)
    ways: dict[str, Callable[[], Tensor]] = {
        "direct": lambda: torch.mkldnn_convolution(x, weight, bias, ONES, ONES, ONES, 1),
        "torch": lambda: winograd.winograd(x, weight, bias, ONES, transformed),
    }
    others: dict[str, Callable[[], object]] = {"torch, weights": lambda: winograd.transform_weight(weight)}
    if compiled.serves(weight):
        packed = compiled.pack_weight(weight)
        ways["compiled"] = lambda: compiled.convolve(x, weight, bias, ONES, packed)
        others["compiled, weights"] = lambda: compiled.pack_weight(weight)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), padding=1)
    found = {f"{name}, error": float((run() - exact).abs().max() / exact.abs().max()) for name, run in ways.items()}
    seen: dict[str, list[float]] = {name: [] for name in (*ways, *others)}
    for _ in range(rounds):
        for name, run in (ways | others).items():
            seen[name].append(milliseconds(run))
    found |= {name: statistics.median(values) for name, values in seen.items()}
    found["takes winograd"] = kernels.takes_winograd(size, weight, torch.float32)
    return found


def row(channels: int, out_channels: int, size: tuple[int, ...], found: dict[str, float]) -> str:
    """A line of the table."""
    work = 2e-6 * 27 * channels * out_channels * math.prod(size)  # GFLOP of the direct convolution, times milliseconds
    cells = [f"{channels} to {out_channels}, {' x '.join(map(str, size))}"]
    for name in ("direct", "torch", "compiled"):
        cells.append(f"{found[name]:.1f} ({work / found[name]:.0f})" if name in found else "")
    cells.append(f"{found['direct'] / found['compiled']:.2f}" if "compiled" in found else "")
    cells.append(f"{found['compiled, weights']:.1f}" if "compiled" in found else "")
    cells += [f"{found[f'{name}, error']:.0e}" if name in found else "" for name in ("direct", "torch", "compiled")]
    return f"| {' | '.join([*cells, 'yes' if found['takes winograd'] else 'no'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds, unit = parser.parse_args().rounds, vector_unit()
    if rounds < 1:
        parser.error(f"--rounds {rounds}: accepted are 1 and more")
    with torch.inference_mode():
        results = [(*case, measured(*case, rounds)) for case in CASES]
    kernel = compiled.instruction_set() or "not built"
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "kernel": kernel, "rounds": rounds}
    raw = {f"{channels} to {out}, {size}": found for channels, out, size, found in results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"convolutions-{unit}.json").write_text(json.dumps({"machine": facts, "work": raw}, indent=1) + "\n")
    lines = [
        f"## Convolutions of 3 x 3 x 3 taps in float32, {UNITS[unit]}",
        "",
        f"torch {facts['torch']}, {facts['threads']} threads, kernel: {kernel}, medians of {rounds}; ms (GFLOP/s of "
        "the direct convolution). Used: whether a call takes Winograd's at that size. Where weights outweigh the "
        "slab it does not: transforming them for every call costs what they save, and keeping them takes much memory.",
        "",
        "| channels, voxels | direct (oneDNN) | Winograd by torch | compiled | x faster than direct | its weights, ms "
        "| error direct | torch | compiled | used |",
        "|---" * 10 + "|",
        *(row(*result) for result in results),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"convolutions-{unit}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
