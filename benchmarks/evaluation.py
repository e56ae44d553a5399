"""Whether the figures of `maisi evaluate images` come in the right order on real volumes, and agree over ranks.

    python benchmarks/evaluation.py MANIFEST FOLDER [--bundle ct-small] [--steps 8]

The held-out cases of a manifest are compared with CTs that the bundle generates from their label maps (at the spacing
that planes are compared at, where theirs is finer), and with themselves, blurred to 25 dB; halves of the real ones
stand beside both. Volumes and features are kept in FOLDER: a run that was stopped goes on, and --no-more compares what
is there. --ranks GROUP repeats the comparison of those of a group by 1, 2 and 4 processes, --memory GROUP that of two,
half and all of its volumes. Writes benchmarks/results/evaluation.json and .md.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maisi.bundle.bundle import Bundle, load_bundle
from maisi.data.cases import read_case
from maisi.data.manifest import Case, read_manifest
from maisi.evaluation.features import PROTOCOLS, PlaneProtocol, Scattering
from maisi.evaluation.images import ImageProtocol, ImageReport, MeasuredSet, compare_images
from maisi.evaluation.sets import NamedImage, features_of
from maisi.evaluation.stored import StoredPlanes, write_features
from maisi.recipes.realism import generated_like
from maisi.space.files import read_volume, write_volume
from maisi.space.resample import resample, with_spacing
from maisi.space.similarity import psnr
from maisi.space.volume import Volume

RESULTS = Path(__file__).parent / "results"
DECIBELS = 25.0
RANKS = (1, 2, 4)
SETS = ("real", "generated", "blurred")
ROWS = (
    ("halves of the real volumes", "generated", "halves"),
    ("generated against real", "generated", "matched"),
    ("blurred to 25 dB against real", "blurred", "matched"),
)
FIGURES = {"frechet_mean": "Frechet", "kernel": "kernel", "precision": "precision", "recall": "recall"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--no-more", action="store_true", help="compare the volumes that are there")
    parser.add_argument("--ranks", metavar="GROUP", help="compare blurred with real volumes of a group over ranks")
    parser.add_argument("--memory", metavar="GROUP", help="the peak of a comparison of few and of more of a group")
    given = parser.parse_args()
    held_out = [case for case in read_manifest(given.manifest) if case.split == "validation" and case.image]
    for name in SETS:
        (given.folder / name).mkdir(parents=True, exist_ok=True)
    if not given.no_more:
        bundle = load_bundle(given.bundle)
        for case in sorted(held_out, key=lambda case: np.prod(case.shape or (0,))):
            make(case, bundle, given.folder, given.steps)
    cases = [case for case in held_out if all(path.is_file() for path in features_in(given.folder, case))]
    old = RESULTS / "evaluation.json"
    found = json.loads(old.read_text(encoding="utf-8")) if old.is_file() else {}
    found |= {"cases": len(cases), "of": len(held_out), "bundle": given.bundle, "steps": given.steps}
    found |= {name: compared(cases, given.folder, name, given.draws).model_dump() for name in SETS[1:]}
    if given.ranks:
        found["ranks"] = {
            str(count): over_ranks([case for case in cases if case.group == given.ranks], given.folder, count)
            for count in RANKS
        }
    if given.memory:
        group = [case for case in cases if case.group == given.memory]
        counts = (2, len(group) // 2, len(group))
        found["peak_mb"] = {str(count): peak_of(group[:count], given.folder) for count in counts}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "evaluation.md").write_text(written(found), encoding="utf-8")
    print(written(found))


def features_in(folder: Path, case: Case) -> list[Path]:
    return [folder / name / f"{case.id}.npz" for name in SETS]


def make(case: Case, bundle: Bundle, folder: Path, steps: int) -> None:
    """The volumes of a case and their features, unless they are there."""
    volumes = [path.with_suffix(".nii.gz") for path in features_in(folder, case)]
    if all(path.is_file() for path in features_in(folder, case)):
        return
    started = time.perf_counter()
    if not all(path.is_file() for path in volumes):
        volume, labels = read_case(case)
        coarse = [max(mm, PlaneProtocol().spacing_mm) for mm in labels.grid.spacing]
        asked = resample(labels, with_spacing(labels.grid, coarse))
        made, _ = generated_like(bundle, case, asked, steps, lambda line: None)
        for each, path in zip((volume, made, blurred_to(volume, DECIBELS)), volumes, strict=True):
            write_volume(each, path)
    for path, features in zip(volumes, features_in(folder, case), strict=True):
        volume = read_volume(path)
        planes = features_of(case.id, volume, Scattering(), PROTOCOLS["maisi"])
        write_features(features, planes, np.array([*volume.grid.spacing, *volume.grid.shape]))
    print(f"{case.id}: {time.perf_counter() - started:.0f} s", flush=True)


def blurred_to(volume: Volume, decibels: float) -> Volume:
    """The volume smoothed by the gaussian (the same in voxels on all axes) that leaves so much PSNR."""
    low, high = 0.0, 8.0
    hu = blurred = np.clip(volume.array, -1000, 1000).astype(np.float32)
    for _ in range(9):
        sigma = (low + high) / 2
        blurred = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3)
        low, high = (sigma, high) if psnr(blurred, hu) > decibels else (low, sigma)
    return Volume(blurred, volume.grid)


def compared(cases: list[Case], folder: Path, synthetic: str, draws: int) -> ImageReport:
    """The report of a set against the real one, from their features."""
    sets = [
        MeasuredSet(
            [named(case, folder / name / f"{case.id}.nii.gz") for case in cases],
            StoredPlanes([folder / name / f"{case.id}.npz" for case in cases]),
        )
        for name in ("real", synthetic)
    ]
    return compare_images(sets[0], sets[1], ImageProtocol("scattering", "maisi", PROTOCOLS["maisi"], draws))


def named(case: Case, path: Path) -> NamedImage:
    """The volume of a case that lies there."""
    return NamedImage(case.id, case.patient or case.id, path, lambda: read_volume(path), case.group)


def over_ranks(cases: list[Case], folder: Path, count: int) -> dict[str, float]:
    """Frechet distances of blurred and real volumes by the command, by so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    out = by_command(cases, folder, f"by_{count}_ranks", torchrun)
    found: dict[str, float] = json.loads((out / "images.json").read_text(encoding="utf-8"))["synthetic"]["frechet"]
    return found


def peak_of(cases: list[Case], folder: Path) -> int:
    """Megabytes that the command held at most while it compared blurred with real volumes."""
    out = by_command(cases, folder, f"of_{len(cases)}")
    return round(json.loads((out / "run.json").read_text(encoding="utf-8"))["peak_bytes"] / 1e6)


def by_command(cases: list[Case], folder: Path, name: str, launcher: Sequence[str] = ()) -> Path:
    """The folder that `maisi evaluate images` fills with the comparison of blurred and real volumes."""
    sets = [folder / f"{each}_{name}" for each in ("real", "blurred")]
    for place, each in zip(sets, ("real", "blurred"), strict=True):
        place.mkdir(exist_ok=True)
        for case in cases:
            link = place / f"{case.id}.nii.gz"
            if not link.exists():
                link.hardlink_to(folder / each / link.name)
    out = folder / f"report_{name}"
    command = [sys.executable, *launcher, "-m", "maisi", "evaluate", "images", *map(str, sets), "--out", str(out)]
    more = ["--draws", "10", "--threads", "1", "--overwrite"]
    subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
    return out


def written(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    header = ["| | " + " | ".join(FIGURES.values()) + " |", "|---|" + "---|" * len(FIGURES)]
    lines = [
        f"{found['cases']} of {found['of']} held-out CTs; generated from their label maps by {found['bundle']} in "
        f"{found['steps']} steps. As many",
        "of other patients as a half of the real ones has, mean and range over ten divisions:",
        "",
        *header,
        *(f"| {words} | {_cells(found[report][row])} |" for words, report, row in ROWS),
        "",
        "All against all, 95 % intervals by resampling volumes:",
        "",
        *header,
        *(f"| {name} against real | {_cells(found[name]['synthetic'])} |" for name in SETS[1:]),
    ]
    if "ranks" in found:
        alone = found["ranks"]["1"]
        most = max(abs(each[name] - alone[name]) for each in found["ranks"].values() for name in alone)
        lines += ["", f"By {', '.join(found['ranks'])} ranks: {alone['mean']:.9f}, at most {most:.1e} apart."]
    if "peak_mb" in found:
        peaks = ", ".join(f"{mb} MB for {count}" for count, mb in found["peak_mb"].items())
        lines += ["", f"Peak memory of a comparison, by the volumes of a set: {peaks}."]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> str:
    cells = []
    for name in FIGURES:
        digits, each = 3 if name == "kernel" else 2, row[name]
        cells.append(f"{each['value']:.{digits}f} ({each['low']:.{digits}f} to {each['high']:.{digits}f})")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
