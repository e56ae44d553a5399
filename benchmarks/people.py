"""The label maps that ship with the package, from the manifest of `benchmarks/atlases.py`.

    python benchmarks/people.py FOLDER/manifest.json --out maps
    maisi labels library add people maps/manifest.json

Each map names every voxel: the labels of its case, coarse tissues by Hounsfield units elsewhere. Radiotherapy targets
are body. They are resampled by vote, heads to 3.5 mm, all else to 4 mm.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import read_case
from maisi.data.manifest import read_manifest
from maisi.space.files import write_labels
from maisi.space.resample import with_spacing
from maisi.space.smooth_labels import resample_smoothly
from maisi.space.volume import LabelMap

TORSOS = ("acrin001_lower", "lidc0001_totalseg", "lidc0002", "lung_dx_a0002", "pancreas_cb_001", "totalseg_example_ct")
HEADS = ("pt_2", "pt_54", "pt_100", "pt_115", "pt_144", "pt_263", "pt_291", "pt_315")
UNNAMED = ("699",)  # a label of a scan, of which nobody says what it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    vocabulary, rows = load_vocabulary(), []
    body, targets = vocabulary.id("body"), vocabulary.group("targets")
    for case in read_manifest(arguments.manifest):
        if case.id not in (*TORSOS, *HEADS):
            continue
        _, labels = read_case(case, UNNAMED)
        plain = LabelMap(np.where(np.isin(labels.array, targets), body, labels.array).astype(np.uint8), labels.grid)
        mm = 3.5 if case.id in HEADS else 4.0
        small = resample_smoothly(plain, with_spacing(plain.grid, (mm, mm, mm)))
        name = f"{case.id}.nii.gz"
        write_labels(LabelMap(small.array.astype(np.uint8), small.grid), arguments.out / name)
        span = {"span": ["head", "head"], "region": "head"} if case.id in HEADS else {"region": case.region}
        about = {"patient": case.patient or case.id, "licence": case.licence, "source": case.source}
        rows.append({"id": case.id, "labels_maisi": name, "split": case.split, **about, **span})
        print(f"{case.id}: {' x '.join(map(str, small.grid.shape))}", flush=True)
    (arguments.out / "manifest.json").write_text(json.dumps({"cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
