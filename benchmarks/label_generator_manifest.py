"""The manifest that the packaged label generator is trained on: label maps of trunks and heads with many structures.

    python benchmarks/label_generator_manifest.py DATA --out manifest.json

DATA holds manifest.json and label_maps/index.json. Of both the cases are taken whose labels, in our ids, name at least
as many structures as the recipe asks for.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.recipes.load import load_recipe
from maisi.space.label_files import read_labels

KEPT = ("id", "image", "region", "licence", "source", "patient", "split", "labels_maisi")
UNLISTED = {  # a map that the index has no row of
    "id": "totalseg_s0327",
    "labels_maisi": "label_maps/totalseg_s0327/labels_maisi.nii.gz",
    "licence": "CC BY 4.0 (TotalSegmentator dataset, Zenodo 10.5281/zenodo.6802613)",
    "source": "TotalSegmentator dataset s0327",
    "patient": "TotalSegmentator s0327",
    "split": "training",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = json.loads((arguments.data / "manifest.json").read_text(encoding="utf-8"))["cases"]
    maps = json.loads((arguments.data / "label_maps" / "index.json").read_text(encoding="utf-8"))
    rows += [row | {"labels_maisi": row["labels"]} for row in maps] + [UNLISTED]
    cases = [case for row in rows if (case := labelled(row, arguments.data)) is not None]
    arguments.out.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases: {', '.join(case['id'] for case in cases)}")


def labelled(row: dict[str, Any], data: Path) -> dict[str, Any] | None:
    """The case of a row; None without labels, or with few structures."""
    case = {name: row[name] for name in KEPT if row.get(name)}
    if "labels_maisi" not in case:
        return None
    for name in ("image", "labels_maisi"):
        if name in case:
            case[name] = str((data / case[name]).resolve())
    num = len(load_vocabulary().check_ids(read_labels(Path(case["labels_maisi"])).array))
    return case if num >= load_recipe("ct-labels").for_labels().maps.least_structures else None


if __name__ == "__main__":
    main()
