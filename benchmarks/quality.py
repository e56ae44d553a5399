"""How many samples of a bundle pass their check at the first try and after more, and what each stage costs.

    python benchmarks/quality.py [--bundle ct-small] [--count 20] [--on-failure redraw|repair]

Regions take turns; labels are of the phantom. Prints a line a sample, and writes benchmarks/results/quality.json: the
shares, median seconds by stage, what failed, and what was remarked most.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import torch

from maisi.bundle.bundle import load_bundle
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest

GRIDS = {
    "chest": ((80, 64, 64), (4.5, 4.5, 4.5)),
    "abdomen": ((80, 64, 64), (4.5, 4.5, 4.5)),
    "lower": ((88, 64, 48), (5.0, 5.0, 5.0)),
    "head": ((48, 56, 56), (5.0, 5.0, 5.0)),
}
MOST = 20  # remarks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="ct-small")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--on-failure", default="redraw")
    parser.add_argument("--max-tries", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle, reports, failures = load_bundle(arguments.bundle), [], []
    seconds: dict[str, list[float]] = defaultdict(list)
    remarks: Counter[str] = Counter()
    for index in range(arguments.count):
        region = list(GRIDS)[index % len(GRIDS)]
        size, spacing = GRIDS[region]
        request = GenerateRequest.model_validate(
            {
                "region": region,
                "size": size,
                "spacing": spacing,
                "seed": index,
                "quality": {"max_tries": arguments.max_tries, "on_failure": arguments.on_failure},
                "compute": {"threads": arguments.threads},
            }
        )
        clock = Clock()
        (sample,) = generate(request, bundle, clock.on_stage)
        report = sample.quality
        reports.append(report)
        for stage, taken in clock.seconds.items():
            seconds[stage].append(taken)
        remarks.update(f"{row.name}: {each.check}" for row in report.structures for each in row.findings)
        failures += [f"{region}, seed {index}: {reason}" for reason in report.reasons]
        told = "passed" if report.passed else "; ".join(report.reasons)
        print(
            f"{region}, seed {index}: {told} after {report.tries} tries, {sum(clock.seconds.values()):.1f} s",
            flush=True,
        )
    results = {
        "bundle": arguments.bundle,
        "samples": len(reports),
        "on_failure": arguments.on_failure,
        "passed_at_first_try": sum(report.passed and report.tries == 1 for report in reports),
        "passed_at_last": sum(report.passed for report in reports),
        "median_seconds": {stage: round(median(spent), 3) for stage, spent in seconds.items()},
        "failures": failures,
        "findings": dict(remarks.most_common(MOST)),
    }
    print(json.dumps({name: results[name] for name in list(results)[2:6]}))
    path = Path(__file__).parent / "results" / "quality.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Clock:
    """Processor seconds by stage of one sample, all tries together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.process_time()

    def on_stage(self, stage: str, done: int, total: int) -> None:
        now = time.process_time()
        self.seconds[stage] += now - self._since
        self._since = now


if __name__ == "__main__":
    main()
