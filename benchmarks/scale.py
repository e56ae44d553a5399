"""Decodes one volume of the released configuration within a memory budget, and looks for seams.

    python benchmarks/scale.py 512 512 768 --precision bfloat16 --memory 15 --folder DIR [--threads 2]

Random weights and a random latent: time and memory do not depend on them. Adds its result to
benchmarks/results/scale.json and .md. What fits is checked against an unsplit pass first (96^3, same plan settings); in
the large volume no two neighbouring rows may differ more than others do, wherever the steps met.
"""
# ruff: noqa: E402

import argparse
import copy
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parity"))
logging.disable(logging.INFO)

from machine import UNITS, vector_unit
from memory import resident, start_peak
from oracle_networks import drawn_network

from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.splitting import plan_memory, run_split

RESULTS = ROOT / "benchmarks" / "results"
CHECKED = 96  # voxels an axis that are decoded whole for comparison


def row_changes(volume: torch.Tensor) -> dict[str, float]:
    """Largest mean difference of neighbouring rows, relative to the median of those of the same phase, for each axis.

    Upsampling by 4 gives the differences a period of 4 rows; zero padding makes the outermost rows another matter.
    """
    found = {}
    for axis in range(3):
        rows = volume.movedim(axis, 0)
        changes = torch.tensor([(rows[i + 1].float() - rows[i].float()).abs().mean() for i in range(len(rows) - 1)])
        phases = [changes[16 + phase : -16 : 4] for phase in range(4)]
        found["xyz"[axis]] = max(float(phase.max() / phase.median()) for phase in phases)
    return found


def check_what_fits(network: Autoencoder, folder: Path) -> float:
    """Largest deviation of a split decode from the unsplit one in float32, relative to the range."""
    draw = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    latent = torch.randn(1, 4, *[CHECKED // 4] * 3, generator=draw).to(dtype)
    plan = plan_memory(network.decode, latent.shape, 300 << 20, dtype=dtype, folder=folder)
    split = run_split(network.decode, latent, plan)
    whole = copy.deepcopy(network).float().decode(latent.float())  # also of bfloat16, which not every processor has
    return float((whole.float() - split.float()).abs().max() / (whole.max() - whole.min()).float())


def watch_disk(folder: Path, most: list[int], stop: threading.Event) -> None:
    """Keeps the largest number of bytes that the run had on disk."""
    while not stop.wait(2.0):
        sizes = []
        for path in folder.rglob("maisi-slabs-*/*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        most[0] = max(most[0], sum(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int, nargs=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory", type=float, required=True, help="GiB above the weights and the latent")
    parser.add_argument("--folder", type=Path, default=None, help="for tensors on disk")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if any(n < 64 or n % 4 for n in arguments.size):
        parser.error(f"size {arguments.size}: every axis must be a multiple of 4 and at least 64")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.precision)
    network = copy.deepcopy(drawn_network(AutoencoderConfig(), torch.float32)).to(dtype)
    latent = torch.randn(1, 4, *[n // 4 for n in arguments.size], generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        deviation = check_what_fits(network, arguments.folder or Path("/tmp"))
        plan = plan_memory(
            network.decode, latent.shape, int(arguments.memory * 2**30), dtype=dtype, folder=arguments.folder
        )
        print(plan.model_dump_json(indent=1), flush=True)
        most, stop = [0], threading.Event()
        if arguments.folder:
            threading.Thread(target=watch_disk, args=(arguments.folder, most, stop), daemon=True).start()
        before, load = start_peak(), os.getloadavg()
        started, cpu = time.perf_counter(), time.process_time()
        volume = run_split(network.decode, latent, plan)[0, 0]
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resident("VmHWM") - before
        stop.set()
        changes = row_changes(volume)
    result = {
        "size": arguments.size,
        "precision": arguments.precision,
        "budget_gib": arguments.memory,
        "predicted_peak_gib": round(plan.peak_bytes / 2**30, 2),
        "measured_peak_gib": round(peak / 2**30, 2),
        "predicted_disk_gib": round(plan.disk_bytes / 2**30, 1),
        "measured_disk_gib": round(most[0] / 2**30, 1),
        "axis": "xyz"[plan.axis],
        "steps": plan.parts,
        "tflop": round(plan.flops / 1e12, 1),
        "overhead": round(plan.overhead, 3),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "load_before": load[0],
        "finite": bool(volume.isfinite().all()),
        "largest_row_change_over_median_of_its_phase": {axis: round(value, 4) for axis, value in changes.items()},
        f"deviation_from_unsplit_at_{CHECKED}": deviation,
        "torch": torch.__version__,
        "processor": UNITS[vector_unit()],
    }
    save(result)
    print(json.dumps(result, indent=1))


def save(result: dict) -> None:
    """Adds a result to the table, in the place of an earlier one of that size and precision."""
    path = RESULTS / "scale.json"
    known = json.loads(path.read_text()) if path.exists() else []
    same = [(r["size"], r["precision"], r["budget_gib"]) for r in known]
    key = (result["size"], result["precision"], result["budget_gib"])
    known = [r for r, k in zip(known, same, strict=True) if k != key] + [result]
    known.sort(key=lambda r: (r["size"][0] * r["size"][1] * r["size"][2], r["precision"], r["budget_gib"]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    lines = [
        "## One decode of the released configuration within a budget",
        "",
        "Bytes above weights and latent. Rows: the largest mean difference of two neighbouring rows over the median",
        "of all (of the same phase of upsampling), for the axes x, y and z; a seam would stand out.",
        "",
        "| voxels | precision | processor, threads | budget GiB | peak GiB (planned) | disk GiB (planned) | steps "
        "| wall s | CPU s | rows |",
        "|---" * 10 + "|",
    ]
    for r in known:
        rows = ", ".join(f"{value:.3f}" for value in r["largest_row_change_over_median_of_its_phase"].values())
        peak, disk = (f"{r[f'measured_{what}_gib']} ({r[f'predicted_{what}_gib']})" for what in ("peak", "disk"))
        where = f"{r['processor']}, {r['threads']}"
        cells = ("x".join(map(str, r["size"])), r["precision"], where, f"{r['budget_gib']:g}", peak, disk)
        lines.append("| " + " | ".join(map(str, (*cells, r["steps"], r["wall_s"], r["cpu_s"], rows))) + " |")
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
