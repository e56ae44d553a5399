"""Many small samples: stages side by side against one after the other, in one run, and whether the bytes are the same.

    python benchmarks/many.py [--count 100] [--rounds 2] [--size 32] [--steps 2] [--threads 1]

Each run is a process of its own that `maisi generate --requests` starts with the packaged bundle; the two ways take
turns. Prints a line a run, and writes benchmarks/results/many.json: seconds from the first sample to the last, the
highest resident memory, the load of the machine before, and how many files differ.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

WAYS = ("one after the other", "side by side")


def serve(way: str, words: list[str]) -> int:
    """What a process does: the command, in this way."""
    from maisi.cli import main
    from maisi.pipelines.many.overlap import overlapped
    from maisi.runs.tasks import many

    def told(*stages: Any, beside: bool) -> Any:
        started = time.perf_counter()
        yield from overlapped(*stages, beside=way == WAYS[1])
        print(json.dumps({"seconds": time.perf_counter() - started}), file=sys.stderr)

    many.overlapped = partial(told)  # type: ignore[assignment]
    return main(words)


def run(way: str, file: Path, out: Path, threads: int) -> dict[str, float]:
    """Carry it out in a process of its own; seconds of all samples, and the peak of resident memory."""
    words = ["generate", "--requests", str(file), "--threads", str(threads), "--out", str(out), "--json"]
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, __file__, "--serve", way, *words], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        raise SystemExit(f"{way} failed: {done.stderr}")
    record = json.loads((out / "run.json").read_text())
    seconds = json.loads(lines[0])["seconds"]
    return {"seconds": round(seconds, 1), "peak_mb": round(record["peak_bytes"] / 1e6), "load": round(load, 1)}


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of files that differ or are in one folder only, but for the records, which tell times."""
    names = {path.name for folder in (ours, theirs) for path in folder.iterdir() if not path.name.startswith("run.")}

    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() else None

    return sorted(name for name in names if content(ours / name) != content(theirs / name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("count", 100), ("rounds", 2), ("size", 32), ("steps", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        file, first = Path(folder) / "requests.yaml", Path(folder) / "first"
        file.write_text(
            f"count: {asked.count}\nsize: {asked.size}\nsteps: {asked.steps}\nspacing: {{uniform: [4.5, 5]}}\n"
            "region: {choice: [chest, abdomen]}\nquality: {on_failure: keep}\n"
        )
        differ: set[str] = set()
        for turn in range(asked.rounds):
            for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                out = first if not first.exists() else Path(folder) / f"{turn} {way}"
                found[way].append(run(way, file, out, asked.threads))
                differ |= set(differing(first, out))
                print(f"{way}: {found[way][-1]}, {len(differ)} files differ", flush=True)
    seconds = {way: statistics.median(each["seconds"] for each in found[way]) for way in WAYS}
    result = {**vars(asked), "cores": os.cpu_count(), "runs": found, "median seconds": seconds}
    result |= {"times as fast": round(seconds[WAYS[0]] / seconds[WAYS[1]], 2), "files that differ": sorted(differ)}
    print(f"{result['times as fast']} times as fast side by side")
    path = Path(__file__).parent / "results" / "many.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(serve(sys.argv[2], sys.argv[3:]))
    main()
