"""What ranks spend on each other: a decode of the released configuration, split over the ranks of this machine.

    torchrun --nproc-per-node 2 benchmarks/ranks.py [--size 128] [--rounds 3]

Writes benchmarks/results/ranks-UNIT.json and .md, UNIT being this processor's vector unit. Before every exchange of
halos the ranks meet, so that waiting for a slower rank is told apart from what the rows themselves take to travel: only
the latter could hide behind computing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parity"))

from machine import UNITS, vector_unit  # noqa: E402
from oracle_networks import drawn_network  # noqa: E402

from maisi.networks.autoencoder import AutoencoderConfig  # noqa: E402
from maisi.splitting import Ranks, SlabTensor  # noqa: E402
from maisi.splitting.ranks import Halo  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Clock:
    """Seconds and bytes so far of what ranks do for each other."""

    waiting_s: float = 0.0
    halos_s: float = 0.0
    gathering_s: float = 0.0
    halo_mib: float = 0.0


def timed(ranks: Ranks, clock: Clock) -> None:
    """Lets exchanges and gathers of these ranks tell the clock."""
    swap, gather = Halo.swap, ranks._all_gather

    def timed_swap(self: Halo, parts: Any, *rest: Any) -> Any:
        started = time.perf_counter()
        ranks.wait()
        met = time.perf_counter()
        got = swap(self, parts, *rest)
        clock.waiting_s += met - started
        clock.halos_s += time.perf_counter() - met
        clock.halo_mib += sum(slab.numel() * slab.element_size() for slab in got) / 2**20
        return got

    def timed_gather(*arguments: Any) -> Any:
        started = time.perf_counter()
        ranks.wait()
        met = time.perf_counter()
        got = gather(*arguments)
        clock.waiting_s += met - started
        clock.gathering_s += time.perf_counter() - met
        return got

    Halo.swap = timed_swap  # type: ignore[method-assign]
    ranks._all_gather = timed_gather  # type: ignore[method-assign]


def once(run: Callable[[], Any], ranks: Ranks, clock: Clock) -> dict[str, float]:
    """One timed call: its own time, and what the clock went on meanwhile."""
    ranks.wait()
    before, started = asdict(clock), time.perf_counter()
    run()
    wall = time.perf_counter() - started
    return {"wall_s": wall, **{key: value - before[key] for key, value in asdict(clock).items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.size < 16 or arguments.size % 4:
        parser.error(f"--size {arguments.size}: accepted are multiples of 4 from 16 on")
    torch.set_num_threads(1)
    ranks, clock = Ranks.join(), Clock()
    timed(ranks, clock)
    network = drawn_network(AutoencoderConfig(), torch.float32)
    latent = torch.randn(1, 4, *[arguments.size // 4] * 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rounds = [
            once(lambda: network.decode(SlabTensor.split(latent, ranks=ranks)).gather(), ranks, clock)
            for _ in range(arguments.rounds)
        ]
    found = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    if ranks.is_first:
        save(found, arguments.size, ranks.size, arguments.rounds)
    ranks.leave()


def save(found: dict[str, float], size: int, count: int, rounds: int) -> None:
    """Writes the first rank's numbers as JSON and as a table."""
    unit = vector_unit()
    facts = {"size": size, "ranks": count, "rounds": rounds, "torch": torch.__version__, **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"ranks-{unit}.json").write_text(json.dumps(facts, indent=1) + "\n")

    def share(key: str) -> str:
        return f"{found[key]:.3f} ({found[key] / found['wall_s']:.2%})"

    lines = [
        f"## A decode to {size}^3 over {count} ranks of one thread, released configuration, float32, {UNITS[unit]}",
        "",
        f"torch {torch.__version__}, gloo on one machine, first rank, medians of {rounds} rounds; seconds (share).",
        "",
        "| wall s | halos travelling | MiB received | moments and the result gathered | waiting for the other rank |",
        "|---|---|---|---|---|",
        f"| {found['wall_s']:.2f} | {share('halos_s')} | {found['halo_mib']:.0f} | {share('gathering_s')} "
        f"| {share('waiting_s')} |",
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"ranks-{unit}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
