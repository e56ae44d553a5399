"""The manifest that the packaged bundle's segmenter is trained and measured on.

    python benchmarks/segmenter_manifest.py DATA --out manifest.json [--atlases DIR]

DATA holds manifest.json and label_maps/index.json. Says of each case what was looked for in it (`labels_present`), and
sorts cases into groups that `recipes/presets/ct-segmenter.yaml` weighs. DIR holds label maps ID.nii.gz that registered
atlases made, with ID.json: `atlases` (names) and `agreement` (by structure, 0 to 1). They teach, in training cases
without labels of their own, what agrees; nobody looked for the rest. They never measure.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.files import write_labels
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap

# One structure of each class that TotalSegmentator v1 looks for; v2 looks for the spinal cord too.
TOTALSEGMENTATOR_1 = (
    "liver", "spleen", "right kidney", "left kidney", "gallbladder", "pancreas", "stomach", "duodenum", "small bowel",
    "colon", "bladder", "aorta", "inferior vena cava", "heart", "right lung upper lobe", "left lung upper lobe",
    "trachea", "esophagus", "brain", "vertebrae L1", "left rib 1", "sacrum", "right hip", "left hip", "right femur",
    "left femur", "left scapula",
)  # fmt: skip
LABELLED = {
    "lidc0001_totalseg": (*TOTALSEGMENTATOR_1, "spinal cord"),
    "totalseg_example_ct": TOTALSEGMENTATOR_1,
    "spl_abdomen_atlas": (),
}
JOINT = ("colon_and_ileum", "stomach_and_duodenum")  # of the atlas: two structures of ours each
FOREIGN = ("pancreas_cb_001", "cip_ct64")  # whose labels have names without a place in the vocabulary
FOAM = ("sts_002", "sts_018")  # a foam strip under the skin reads as lung
CROPS = ("totalseg_aorta_crop", "dicom2stl_head", "elastix_3dct_lung", "tcga_bc_a10x")  # too small to register
AGREES = 0.78
OF_SEVERAL_ATLASES = ("right kidney", "left kidney", "heart", "aorta", "bladder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--atlases", type=Path)
    arguments = parser.parse_args()
    rows = json.loads((arguments.data / "manifest.json").read_text())["cases"]
    maps = json.loads((arguments.data / "label_maps" / "index.json").read_text())
    cases = [scan(row) for row in rows if row["id"] not in FOAM] + [labelled(row) for row in maps if row["image"]]
    for case in cases:
        for name in ("image", "labels", "labels_maisi"):
            if name in case:
                case[name] = str((arguments.data / case[name]).resolve())
        if arguments.atlases is not None and case["group"] == "torso" and case["split"] == "training":
            teach(case, arguments.atlases, arguments.out.parent / "atlas_labels")
    arguments.out.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")


def scan(row: dict[str, Any]) -> dict[str, Any]:
    """A case of the manifest, in its group."""
    case = {name: value for name, value in row.items() if name not in ("shape", "spacing_mm")}
    if row["id"] in LABELLED:
        names = {id: "background" if name in JOINT else name for id, name in row["label_names"].items()}
        return case | {"group": "torso_labelled", "labels_present": LABELLED[row["id"]], "label_names": names}
    if row["id"] in FOREIGN:
        case = {name: value for name, value in case.items() if name not in ("labels", "label_names")}
    return case | ({"group": "torso"} if row["group"] == "torso_head" else {})


def labelled(row: dict[str, Any]) -> dict[str, Any]:
    """A label map that has its CT."""
    kept = ("id", "image", "region", "licence", "source", "patient", "split")
    case = {name: row[name] for name in kept} | {"labels_maisi": row["labels"]}
    if "totalseg" in row["id"]:
        return case | {"group": "torso_labelled", "labels_present": TOTALSEGMENTATOR_1}
    return case | {"group": "spine"}


def teach(case: dict[str, Any], atlases: Path, out: Path) -> None:
    """Give a case the part of its atlas labels that can be trusted: lungs, liver, brain, bones, and what agrees."""
    path = atlases / f"{case['id']}.nii.gz"
    if case["id"] in CROPS or not path.is_file():
        return
    vocabulary, about = load_vocabulary(), json.loads((atlases / f"{case['id']}.json").read_text())
    trusted = {id for group in ("lungs", "bones", "tissues") for id in vocabulary.group(group)}
    trusted |= {vocabulary.id("liver"), vocabulary.id("brain")}
    if len(about["atlases"]) > 1:
        agreed = [name for name in OF_SEVERAL_ATLASES if about["agreement"].get(name, 0) >= AGREES]
        trusted |= {vocabulary.id(name) for name in agreed}
    labels = read_labels(path)
    ids = labels.array.astype(np.uint8)
    ids[(ids > 0) & ~np.isin(ids, list(trusted))] = vocabulary.id("body")
    out.mkdir(parents=True, exist_ok=True)
    write_labels(LabelMap(ids, labels.grid), out / path.name)
    for name in ("labels", "label_names"):
        case.pop(name, None)
    case |= {"labels_maisi": str((out / path.name).resolve()), "labels_present": ["body"]}  # nothing was looked for


if __name__ == "__main__":
    main()
