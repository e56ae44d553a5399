"""Puts the tables of benchmarks/results together into docs/performance.md.

python benchmarks/report.py
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = {
    "splitting-*": "make bench",
    "convolutions-*": ".venv/bin/python benchmarks/convolutions.py",
    "generate-*": ".venv/bin/python benchmarks/generate.py",
    "rounding": ".venv/bin/python benchmarks/rounding.py CT",
    "ranks-*": ".venv/bin/torchrun --nproc-per-node 2 benchmarks/ranks.py",
    "scale": ".venv/bin/python benchmarks/scale.py X Y Z --precision P --memory GIB --folder DIR",
    "busy-*": ".venv/bin/python benchmarks/busy.py --before SRC",
}
HEAD = """# Performance

Every table below was written by the command above it and put here by `python benchmarks/report.py`, each for the kind
of processor that it was measured on. Both precisions of a comparison stand in its rows. Ratios travel better than
seconds do, but not from one kind of processor to another.

- **float32** convolutions take a sixth of the products (Winograd's minimal filtering along three axes) in a compiled
  kernel, or a quarter, along two, by torch where it could not be built
  ([decision 4](decisions/0004-a-compiled-convolution.md)). It is the default but for AMX.
- The tables of AMX, and of AVX512-BF16 those of `maisi generate` and of ranks, are from before there was a kernel:
  float32 is slower in them than it is now.
- **bfloat16** halves the memory of slabs. With AMX it was two to three times as fast as float32 without the kernel, and
  is the default there; where the processor cannot multiply in it the products are float32. Its first and last
  convolutions and its norms keep float32 ([decision 5](decisions/0005-what-bfloat16-keeps-in-float32.md)): the packaged
  bundle stays within 2 HU rms of float32 when it decodes and generates. These tables are from before that, too.
- **Memory** is the peak above what was resident before the call, weights not counted.
"""
BUSY = """## On a machine that others use

Threads of GNU's OpenMP, which torch's wheels bring, spin for milliseconds whenever one is done before another. Alone
that costs nothing; beside other work a thread spins on the core that the one it waits for would need, at every join.

- A command sets `OMP_WAIT_POLICY=PASSIVE` before torch is imported, unless `OMP_WAIT_POLICY`, `GOMP_SPINCOUNT` or
  `KMP_BLOCKTIME` is set. From Python set it yourself, before the first import of torch: nothing else in maisi does.
- Norms, their activations and the packing of weights join once for a slab and not once for an operation on a cacheful.
  A decode of a 16^3 latent takes 321 parallel regions of torch in 8 slabs (1131 before), 598 within 0.15 GiB (1486),
  and in bfloat16 342 in 8 slabs (1006), to the same bits.
- Threads are as many as there are cores in the process's affinity, at most what the CPU quota of its cgroups pays for;
  `--threads` and `OMP_NUM_THREADS` count first.

`python benchmarks/busy.py --before SRC` measures decodes alone, beside others and within a quota, before and now, and
MONAI's.
"""


def main() -> None:
    parts = [HEAD]
    for pattern, command in TABLES.items():
        tables = [path.read_text() for path in sorted(RESULTS.glob(f"{pattern}.md")) if "-quick" not in path.name]
        if tables:
            parts += [f"```bash\n{command}\n```\n", *tables]
    parts.append(BUSY)
    parts += [
        (ROOT / "benchmarks" / "gpu.md").read_text(),
        *(path.read_text() for path in sorted(RESULTS.glob("gpu-*.md"))),
    ]
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
