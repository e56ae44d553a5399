"""Labels of the torso CTs of a data folder by registration, and how good they are where a CT has labels of its own.

    python benchmarks/atlases.py DATA --out FOLDER [--cases totalseg_example_ct lidc0002]

DATA has manifest.json and label_maps/index.json. Atlases are its training CTs with many labels, and whole label maps
without a CT. A case is never labelled by itself. FOLDER gets a label map and a picture of each case, and manifest.json:
that of DATA, in which training CTs without whole labels have these. `maisi train controlnet ct-small-refined` learns
from it. For cases with labels of their own, Dice by structure is printed. Needs the extra `register`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidRequestError
from maisi.evaluation.adherence import dice
from maisi.pipelines.atlases import Atlas, read_atlases, vote
from maisi.pipelines.preview import preview, write_png
from maisi.space.files import write_labels
from maisi.space.volume import LabelMap

WHOLE_MAPS = ("totalseg_s0000", "totalseg_s0001", "totalseg_s0004", "totalseg_s0328")  # chest to lower, without a CT
WITH_CT = ("totalseg_s0002", "totalseg_s0009")  # crops with labels of their own, which join the manifest
NOT_TRUSTED = ("dicom2stl_head", "elastix_3dct_lung", "tcga_bc_a10x")  # looked at: another part of the body was matched
PATHS = ("image", "labels", "labels_maisi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", help="ids, instead of all torso CTs")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    cases = [case for case in read_manifest(data / "manifest.json") if case.group == "torso_head"]
    atlases = read_atlases(_atlas_manifest(data, out))
    for case in cases:
        if case.id in (arguments.cases or [each.id for each in cases]):
            label(case, [atlas for atlas in atlases if atlas.name != case.id], out)
    _write(out / "manifest.json", _with_labels(data, out))


def label(case: Case, atlases: list[Atlas], out: Path) -> None:
    """Label one case, and say how it went."""
    volume, own = case_volume(case), own_labels(case)
    try:
        voted = vote(volume, atlases)
    except InvalidRequestError as error:
        print(f"{case.id}: {error}", flush=True)
        return
    write_labels(voted.labels, out / f"{case.id}.nii.gz")
    write_png(preview(volume, voted.labels, case.id), out / f"{case.id}.png")
    least = min(voted.agreement.items(), key=lambda each: each[1], default=("nothing", 0.0))
    print(f"{case.id}: by {', '.join(voted.atlases)}; least agreement {least[1]:.2f} on {least[0]}", flush=True)
    if own is not None and case.id not in voted.atlases:
        print(f"  Dice with its own labels: {_agreement(own, voted.labels)}", flush=True)


def _agreement(own: LabelMap, found: LabelMap) -> str:
    ids = set(np.unique(own.array).tolist()) & set(np.unique(found.array).tolist()) - {0}
    scores = {load_vocabulary().name(id): dice(own.array == id, found.array == id) for id in ids}
    return ", ".join(f"{name} {score:.2f}" for name, score in sorted(scores.items(), key=lambda each: -each[1]))


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest or an index with absolute paths; in an index `labels` are in our ids."""
    content = json.loads(path.read_text())
    rows, root = (content["cases"], path.parent) if isinstance(content, dict) else (content, path.parent.parent)
    for row in rows:
        if not isinstance(content, dict):
            row["labels_maisi"] = row.pop("labels")
        row |= {key: str(root / row[key]) for key in PATHS if row.get(key)}
    return [{key: row[key] for key in Case.model_fields if row.get(key) is not None} for row in rows]


def _atlas_manifest(data: Path, out: Path) -> Path:
    maps = [row for row in _rows(data / "label_maps" / "index.json") if row["id"] in WHOLE_MAPS]
    for row in maps:
        row.pop("image", None)
    mine = [row for row in _rows(data / "manifest.json") if "labels_maisi" in row and row["split"] == "training"]
    return _write(out / "atlases.json", [*mine, *maps])


def _with_labels(data: Path, out: Path) -> list[dict[str, Any]]:
    rows = _rows(data / "manifest.json")
    for row in rows:
        made = (out / f"{row['id']}.nii.gz").resolve()
        is_wanted = row["split"] == "training" and "labels_maisi" not in row and row["id"] not in NOT_TRUSTED
        if made.exists() and is_wanted and row["id"] != "spl_abdomen_atlas":  # labelled by experts
            row["labels_maisi"] = str(made)
    crops = [row for row in _rows(data / "label_maps" / "index.json") if row["id"] in WITH_CT]
    return rows + [{**row, "group": "torso_head"} for row in crops]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"cases": rows}, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
