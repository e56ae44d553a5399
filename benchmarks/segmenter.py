"""How well a bundle's segmenter tells the structures of held-out CTs.

    python benchmarks/segmenter.py DATA/manifest.json --bundle BUNDLE [--pictures DIR]

The validation cases of a manifest that have labels are segmented as a whole. A line a class: Dice, surface Dice (within
3 mm) and HD95, means over the cases that have the class, with bootstrap intervals; below them lungs, bones and the body
against what Hounsfield units show, in all validation CTs. Writes benchmarks/results/segmenter.json.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from maisi.anatomy.body import complete_labels, tissue_labels
from maisi.anatomy.segmented import admissible
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import load_bundle
from maisi.data.cases import case_volume, own_labels
from maisi.data.labelled import looked_for
from maisi.data.manifest import Case, read_manifest
from maisi.evaluation.segmentation import Agreement, dice, interval, known_agreement
from maisi.pipelines.preview import preview, write_png
from maisi.pipelines.segment import NetworkSegmenter, segmenter_of
from maisi.space.volume import LabelMap, Volume

TOLERANCE_MM = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    segmenter = segmenter_of(load_bundle(arguments.bundle))
    by_class: dict[str, list[Agreement]] = defaultdict(list)
    by_tissue: dict[str, list[float]] = defaultdict(list)
    for case in read_manifest(arguments.manifest):
        if case.split != "validation" or case.image is None or case.modality != "ct":
            continue
        volume, started = case_volume(case), time.perf_counter()
        found = segmenter.classes(volume)
        seconds = time.perf_counter() - started
        told = compare(case, volume, found, segmenter)
        for name, value in told.items():
            by_class[name].append(value)
        for name, value in tissues(volume, segmenter.written(found)).items():
            by_tissue[name].append(value)
        print(f"{case.id}, {seconds:.1f} s: " + ", ".join(f"{n} {a.dice:.2f}" for n, a in told.items()), flush=True)
        if arguments.pictures is not None:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            write_png(preview(volume, shown(found, segmenter), case.id), arguments.pictures / f"{case.id}.png")
    rng, table = np.random.default_rng(0), {}
    for name in [name for name in segmenter.config.names if name in by_class]:
        agreements = by_class[name]
        dices = interval([a.dice for a in agreements if a.dice is not None], rng)
        near = [a.surface_dice for a in agreements if a.surface_dice is not None]
        far = [a.hd95_mm for a in agreements if a.hd95_mm is not None]
        table[name] = dices.model_dump() | {"surface_dice": mean(near), "hd95_mm": mean(far)}
        print(f"{name} ({dices.cases}): Dice {dices.mean:.3f} [{dices.low:.3f}, {dices.high:.3f}], "
              f"surface Dice {mean(near)}, HD95 {mean(far)} mm")  # fmt: skip
    shares = {name: interval(values, rng).model_dump() for name, values in by_tissue.items()}
    print("against Hounsfield units:", ", ".join(f"{name} {each['mean']:.3f}" for name, each in shares.items()))
    lacking = [name for name in segmenter.config.names if name not in by_class]
    print("no validation CT has labels of:", ", ".join(lacking))
    results = Path(__file__).parent / "results" / "segmenter.json"
    results.write_text(json.dumps({"classes": table, "tissues": shares}, indent=1) + "\n", encoding="utf-8")


def compare(case: Case, volume: Volume, found: LabelMap, segmenter: NetworkSegmenter) -> dict[str, Agreement]:
    """The agreement of each class that the case's own labels have, but for the rest of the body."""
    own, vocabulary, config = own_labels(case), load_vocabulary(), segmenter.config
    if own is None:
        return {}
    table = admissible(config.classes, looked_for(case, own, vocabulary), vocabulary)
    told = known_agreement(complete_labels(own, volume), found, table, config.names, TOLERANCE_MM)
    return {name: each for name, each in told.items() if name != "body"}


def tissues(volume: Volume, labels: LabelMap) -> dict[str, float]:
    """Dice of lungs, bones and body against what Hounsfield units show."""
    vocabulary, coarse = load_vocabulary(), tissue_labels(volume).array
    masks = {
        name: [np.isin(ids, vocabulary.group(name)) for ids in (coarse, labels.array)] for name in ("lungs", "bones")
    }
    masks["body"] = [coarse > 0, labels.array > 0]
    scores = {name: dice(a, b) for name, (a, b) in masks.items() if a.any()}
    return {name: score for name, score in scores.items() if score is not None}


def shown(found: LabelMap, segmenter: NetworkSegmenter) -> LabelMap:
    """Classes in colours of their own: that of the first structure of each."""
    first = np.array([0, *(each.ids[0] for each in segmenter.config.classes)], np.uint8)
    return LabelMap(first[found.array], found.grid)


def mean(values: list[float]) -> float | None:
    """Rounded; None without values."""
    return round(float(np.mean(values)), 3) if values else None


if __name__ == "__main__":
    main()
