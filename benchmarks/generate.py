"""Wall time and peak memory of `maisi generate` as a whole process, at 64^3 and 128^3.

    python benchmarks/generate.py [--runs 3] [--precision float32]

Prints medians and writes benchmarks/results/generate-UNIT.json and .md (generate-UNIT-bfloat16 in that precision), UNIT
being the vector unit of this processor.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import UNITS, vector_unit

SIZES = {64: 5.0, 128: 3.0}


def run(size: int, spacing: float, precision: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "maisi", "generate", "--region", "chest", "--out", f"{folder}/out"]
        command += ["--size", *[str(size)] * 3, "--spacing", *[str(spacing)] * 3, "--precision", precision]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        record = json.loads(Path(folder, "out", "run.json").read_text())
    stages = {name: stage["seconds"] for name, stage in record["stages"].items()}
    return {"seconds": seconds, "peak_bytes": record["peak_bytes"], **{f"{n}_seconds": s for n, s in stages.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    results = {}
    for size, spacing in SIZES.items():
        runs = [run(size, spacing, arguments.precision) for _ in range(arguments.runs)]
        results[f"{size}^3"] = {name: statistics.median(r[name] for r in runs) for name in runs[0]}
        middle = results[f"{size}^3"]
        print(f"{size}^3 {arguments.precision}: {middle['seconds']:.1f} s, peak {middle['peak_bytes'] / 2**30:.2f} GiB")
    precision = "" if arguments.precision == "float32" else f"-{arguments.precision}"
    path = Path(__file__).parent / "results" / f"generate-{vector_unit()}{precision}"
    path.parent.mkdir(exist_ok=True)
    raw = {"precision": arguments.precision, **results}
    path.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    how = f"{arguments.precision}, 10 steps, median of {arguments.runs}, {UNITS[vector_unit()]}"
    lines = [
        f"## `maisi generate` with ct-small, {how}",
        "",
        "| voxels | wall s, whole process | sampling s | decoding s | peak GiB, whole process |",
        "|---|---|---|---|---|",
    ]
    for name, r in results.items():
        cells = (r["seconds"], r["sample_seconds"], r["decode_seconds"], r["peak_bytes"] / 2**30)
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
