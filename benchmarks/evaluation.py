"""Whether the figures of `maisi evaluate images` come in the right order on real volumes, and agree over ranks.

    python benchmarks/evaluation.py MANIFEST FOLDER [--bundle ct-small] [--steps 10]

The held-out cases of a manifest are compared with CTs that the bundle generates from their label maps (at the spacing
that planes are compared at, where theirs is finer), and with themselves, blurred to 25 dB; halves of the real ones
stand beside both. Volumes are kept in FOLDER, so that a run that was stopped goes on. Writes
benchmarks/results/evaluation.json and .md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maisi.bundle.bundle import load_bundle
from maisi.data.cases import read_case
from maisi.data.manifest import Case, read_manifest
from maisi.evaluation.features import PlaneProtocol
from maisi.recipes.realism import generated_like
from maisi.space.files import write_volume
from maisi.space.resample import resample, with_spacing
from maisi.space.similarity import psnr
from maisi.space.volume import Volume

RESULTS = Path(__file__).parent / "results"
DECIBELS = 25.0
RANKS = (1, 2, 4)
ROWS = (("halves of the real volumes", "generated", "halves"), ("generated against real", "generated", "matched"))
ROWS += (("blurred to 25 dB against real", "blurred", "matched"),)
FIGURES = {"frechet_mean": "Frechet", "kernel": "kernel", "precision": "precision", "recall": "recall"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    chosen = [case for case in read_manifest(arguments.manifest) if case.split == "validation" and case.image]
    for name in ("real", "generated", "blurred"):
        (arguments.folder / name).mkdir(parents=True, exist_ok=True)
    make(chosen, arguments)
    found = {
        "cases": len(chosen),
        "bundle": arguments.bundle,
        "steps": arguments.steps,
        "generated": evaluate(arguments, "generated", 1, arguments.draws),
        "blurred": evaluate(arguments, "blurred", 1, arguments.draws),
    }
    alone = evaluate(arguments, "generated", 1, 0)
    found["ranks"] = {
        str(count): {**evaluate(arguments, "generated", count, 0)["synthetic"]["frechet"]} for count in RANKS[1:]
    }
    found["ranks"]["1"] = alone["synthetic"]["frechet"]
    found["largest_difference"] = max(
        abs(found["ranks"][str(count)][name] - found["ranks"]["1"][name])
        for count in RANKS
        for name in found["ranks"]["1"]
    )
    found["memory"] = {str(times): peak_mb(arguments.folder, times) for times in (1, 4)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = written(found)
    (RESULTS / "evaluation.md").write_text(text, encoding="utf-8")
    print(text)


def make(cases: list[Case], arguments: argparse.Namespace) -> None:
    """The volumes of the three sets, those that are not there yet."""
    bundle = load_bundle(arguments.bundle)
    for case in cases:
        paths = {name: arguments.folder / name / f"{case.id}.nii.gz" for name in ("real", "generated", "blurred")}
        if all(path.is_file() for path in paths.values()):
            continue
        started = time.perf_counter()
        volume, labels = read_case(case)
        coarse = [max(mm, PlaneProtocol().spacing_mm) for mm in labels.grid.spacing]
        asked = resample(labels, with_spacing(labels.grid, coarse))
        made, _ = generated_like(bundle, case, asked, arguments.steps, lambda line: None)
        blurred, decibels = blurred_to(volume, DECIBELS)
        for name, each in (("real", volume), ("generated", made), ("blurred", blurred)):
            write_volume(each, paths[name])
        print(f"{case.id}: {time.perf_counter() - started:.0f} s, blurred to {decibels:.2f} dB", flush=True)


def blurred_to(volume: Volume, decibels: float) -> tuple[Volume, float]:
    """The volume smoothed by the gaussian (the same in voxels on all axes) that leaves so much PSNR, and that PSNR."""
    low, high = 0.0, 8.0
    hu = blurred = np.clip(volume.array, -1000, 1000).astype(np.float32)
    for _ in range(9):
        sigma = (low + high) / 2
        blurred = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3)
        low, high = (sigma, high) if psnr(blurred, hu) > decibels else (low, sigma)
    return Volume(blurred, volume.grid), psnr(blurred, hu)


def evaluate(arguments: argparse.Namespace, synthetic: str, ranks: int, draws: int) -> dict[str, Any]:
    """The report of a set against the real one, by so many processes."""
    out = arguments.folder / f"report_{synthetic}_{ranks}_{draws}"
    if not (out / "run.json").is_file():
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        sets = [str(arguments.folder / name) for name in ("real", synthetic)]
        command = [sys.executable, *torchrun, "-m", "maisi", "evaluate", "images", *sets, "--out", str(out)]
        subprocess.run([*command, "--draws", str(draws), "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((out / "images.json").read_text(encoding="utf-8")))


def peak_mb(folder: Path, times: int) -> int:
    """The most memory that a comparison takes whose sets hold each volume so many times."""
    sets = [folder / f"{name}_{times}_times" for name in ("real", "generated")]
    for copies, source in zip(sets, ("real", "generated"), strict=True):
        copies.mkdir(exist_ok=True)
        for path in sorted((folder / source).glob("pt_*.nii.gz"))[:5]:
            for k in range(times):
                link = copies / f"{k}_{path.name}"
                if not link.exists():
                    link.hardlink_to(path)
    out = folder / f"report_memory_{times}"
    command = [sys.executable, "-m", "maisi", "evaluate", "images", *map(str, sets), "--out", str(out), "--draws", "5"]
    subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return round(record["peak_bytes"] / 1e6)


def written(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = [
        f"{found['cases']} held-out CTs, and CTs of their label maps by {found['bundle']} in {found['steps']} steps.",
        "As many of other patients as a half of the real ones has: mean and range over ten divisions.",
        "",
        "| | " + " | ".join(FIGURES.values()) + " |",
        "|---|" + "---|" * len(FIGURES),
        *(f"| {words} | {_cells(found[report][row])} |" for words, report, row in ROWS),
        "",
        "All against all, 95 % intervals by resampling volumes:",
        "",
        "| | " + " | ".join(FIGURES.values()) + " |",
        "|---|" + "---|" * len(FIGURES),
        *(f"| {name} against real | {_cells(found[name]['synthetic'])} |" for name in ("generated", "blurred")),
        "",
        f"Frechet distance by {', '.join(map(str, RANKS))} ranks: {found['ranks']['1']['mean']:.9f}, at most "
        f"{found['largest_difference']:.1e} apart in any orientation.",
        f"Peak memory: {found['memory']['1']} MB for 10 volumes, {found['memory']['4']} MB for 40.",
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> str:
    cells = []
    for name in FIGURES:
        digits = 3 if name == "kernel" else 2
        each = row[name]
        cells.append(f"{each['value']:.{digits}f} ({each['low']:.{digits}f} to {each['high']:.{digits}f})")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
