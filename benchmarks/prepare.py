"""Scans to training cases: time and memory a volume by one and by two processes, and latents by a Ray cluster.

    python benchmarks/prepare.py DATA/manifest.json [--parts alone prepared encoded] [--cases 121] [--workers 1 2]
        [--encode 6] [--bundle ct-small]

Prepares the first cases of a manifest by `maisi prepare` with each number of workers, and the smallest, the median and
the largest of them alone; then encodes some by `maisi encode --manifest` in one process, and over two Ray workers that
`--ray local` starts. Prints a line a run and writes its parts into benchmarks/results/prepare.json: seconds on the
clock and of the processor, the largest resident memory of any process, the load of the machine before, and which files
differ.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def carried_out(*words: object, out: Path) -> dict[str, Any]:
    """What a command took that writes into a folder; raises `SystemExit` where it failed."""
    load, started = os.getloadavg()[0], time.perf_counter()
    words = (*words, "--out", out)
    process = subprocess.Popen([sys.executable, "-m", "maisi", *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"maisi {' '.join(map(str, words))} ended with {process.returncode}")
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(max(record["peak_bytes"], usage.ru_maxrss * 1024) / 1e6),  # a run forgets its peaks
        "load": round(load, 1),
    }


def listed(cases: list[dict[str, Any]], manifest: Path, file: Path) -> Path:
    """A manifest of some of the cases of another, with paths that hold from anywhere."""
    paths = [{k: str(manifest.parent.resolve() / v) for k, v in case.items() if k in PATHS and v} for case in cases]
    told = [{**case, **own} for case, own in zip(cases, paths, strict=True)]
    file.write_text(json.dumps({"cases": told}), encoding="utf-8")
    return file


PATHS = ("image", "labels", "labels_maisi")


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of files of prepared cases that differ or are in one store only."""
    names = {p.relative_to(each).as_posix() for each in (ours, theirs) for p in each.rglob("*") if p.is_file()}
    both = [(name, ours / name, theirs / name) for name in sorted(names) if "run." not in name]
    return [name for name, a, b in both if not (a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes())]


def unlike(ours: Path, theirs: Path) -> list[str]:
    """Names of latents of which a tensor differs in a bit."""
    names = sorted({path.name for folder in (ours, theirs) for path in folder.glob("*.safetensors")})
    found = []
    for name in names:
        a, b = (load_file(folder / name) for folder in (ours, theirs))
        if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
            found.append(name)
    return found


def prepared(cases: list[dict[str, Any]], asked: argparse.Namespace, root: Path) -> dict[str, Any]:
    manifest = listed(cases, asked.manifest, root / "all.json")
    runs: dict[str, Any] = {}
    for workers in asked.workers:
        store = root / f"by_{workers}"
        runs[f"{workers} workers"] = took = carried_out("prepare", manifest, "--workers", workers, out=store)
        took["accepted"] = len((store / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
        took["cpu_seconds_a_volume"] = round(took["cpu_seconds"] / len(cases), 2)
        print(f"{workers} workers, {len(cases)} volumes: {took}", flush=True)
    stores = [root / f"by_{workers}" for workers in asked.workers]
    return {
        "volumes": len(cases),
        "runs": runs,
        "files that differ": [name for store in stores[1:] for name in differing(stores[0], store)],
    }


def alone(cases: list[dict[str, Any]], asked: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """The smallest, the median and the largest volume, each prepared in a process of its own."""
    by_size = sorted(cases, key=lambda case: math.prod(case["shape"]))
    found = []
    for case in (by_size[0], by_size[len(by_size) // 2], by_size[-1]):
        manifest = listed([case], asked.manifest, root / f"{case['id']}.json")
        took = carried_out("prepare", manifest, "--validation", 0, out=root / f"alone_{case['id']}")
        found.append({"id": case["id"], "shape": case["shape"], **took})
        print(f"alone: {found[-1]}", flush=True)
    return found


def encoded(cases: list[dict[str, Any]], asked: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Latents of the smallest cases by one process, and over Ray."""
    few = sorted(cases, key=lambda case: math.prod(case["shape"]))[: asked.encode]
    store = root / "few"
    carried_out("prepare", listed(few, asked.manifest, root / "few.json"), out=store)
    found: dict[str, Any] = {"cases": len(few)}
    for name, more in (("one process", ()), ("two Ray workers", ("--ray", "local"))):
        words = ("encode", "--manifest", store, "--bundle", asked.bundle, "--threads", 1, *more)
        found[name] = carried_out(*words, out=root / name)
        print(f"encode by {name}: {found[name]}", flush=True)
    found["latents that differ"] = unlike(root / "one process", root / "two Ray workers")
    return found


PARTS = {"alone": alone, "prepared": prepared, "encoded": encoded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cases", type=int, default=None)
    parser.add_argument("--encode", type=int, default=6)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    cases = json.loads(asked.manifest.read_text(encoding="utf-8"))["cases"][: asked.cases]
    path = Path(__file__).parent / "results" / "prepare.json"
    with tempfile.TemporaryDirectory() as name:
        for part in asked.parts:
            told = PARTS[part](cases, asked, Path(name))
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            found = {**before, "cores": os.cpu_count(), part: told}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
