"""How often the body regions of a CT are told rightly without labels, by split and region.

    python benchmarks/regions.py DATA/manifest.json

The right answer is what the manifest's words say; cases without words, and crops whose words tell no region, are left
out. Prints a line a case and the shares of right tops and bottoms, and writes benchmarks/results/regions.json.
"""

import argparse
import json
from pathlib import Path

from maisi.anatomy.region_estimator import estimate_span
from maisi.data.cases import words_span
from maisi.data.manifest import read_manifest
from maisi.space.files import read_volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in read_manifest(arguments.manifest):
        said = words_span(case.region)
        if said is None or case.image is None or "crop" in case.region:
            continue
        found = estimate_span(read_volume(case.image))
        top, bottom = found.top is said.top, found.bottom is said.bottom
        rows.append({"id": case.id, "group": case.group, "split": case.split, "top": top, "bottom": bottom})
        if not (top and bottom):
            print(f"{case.id} ({case.split}, {case.region}): {found.top.name} to {found.bottom.name}")
    shares = {}
    for split in ("training", "validation"):
        for group in sorted({row["group"] for row in rows}):
            own = [row for row in rows if row["split"] == split and row["group"] == group]
            if own:
                right = {"cases": len(own)} | {end: sum(row[end] for row in own) for end in ("top", "bottom")}
                shares[f"{split}, {group}"] = right
                print(f"{split}, {group}: {len(own)} cases, top right in {right['top']}, bottom in {right['bottom']}")
    results = Path(__file__).parent / "results" / "regions.json"
    results.write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
