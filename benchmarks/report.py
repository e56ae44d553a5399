"""Puts the tables of benchmarks/results together into docs/performance.md.

python benchmarks/report.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = {
    "splitting": "make bench",
    "generate": ".venv/bin/python benchmarks/generate.py",
    "scale": ".venv/bin/python benchmarks/scale.py X Y Z --precision P --memory GIB --folder DIR",
}
HEAD = """# Performance

Every table below was written by the command above it and put here by `python benchmarks/report.py`. Times are wall
clock on {machine}; both precisions of a comparison stand in its rows.
Ratios travel better than seconds do.

- **float32** convolutions take a quarter of the products (Winograd along two axes,
  [decision 1](decisions/0001-splitting-is-a-deferred-tensor.md)), which is as fast as direct bfloat16 where the CPU has
  AVX512-BF16 but no matrix unit (AMX). It is the default.
- **bfloat16** halves the memory. Its deviation is in the table of accuracy.
- **Memory** is the peak above what was resident before the call, weights not counted. The decode within 0.50 GiB in
  bfloat16 was timed before the planner counted slabs that are freed late; it went over its budget then, not now.
"""


def main() -> None:
    facts = json.loads((RESULTS / "splitting.json").read_text())["machine"]
    parts = [HEAD.format(machine=f"{facts['threads']} cores ({facts['cpu']}), torch {facts['torch']}")]
    for name, command in TABLES.items():
        path = RESULTS / f"{name}.md"
        if path.exists():
            parts.append(f"```bash\n{command}\n```\n\n{path.read_text()}")
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
