"""Hounsfield units of every structure in real CTs with labels: what generated ones are judged by.

    python benchmarks/reference_hu.py DATA

DATA holds manifest.json and label_maps/index.json. Measures the median and the spread of each structure's core in every
scan of the training split and writes src/maisi/anatomy/reference_hu.yaml: count, median, standard deviation, least and
greatest of the medians, for all scans and by contrast phase, where an aorta tells it.
"""

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from maisi.anatomy import references
from maisi.anatomy.measure import looks
from maisi.anatomy.references import ScanStatistics, StructureStatistics
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.manifest import Case, read_manifest

CONTRAST_HU = 150.0
LEAST_VOXELS = 30
MANY_SCANS = 20  # from here on percentiles, which a few wrong labels do not move
DROP = ("699",)  # numbers in the sources' maps of which nobody says what they are
NOT_JUDGED = ("targets", "dummies")  # groups that are no tissue
FLAWED = {"lidc0001_totalseg": ("superior vena cava", "right brachiocephalic vein", "right rib 1")}
"""Streaks of undiluted contrast medium."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, list[tuple[str | None, float, float]]] = defaultdict(list)
    scans = 0
    for case in cases(arguments.data):
        rows = measured(case)
        scans += bool(rows)
        aorta = rows.get("aorta")
        phase = None if aorta is None else ("contrast" if aorta[0] > CONTRAST_HU else "plain")
        print(f"{case.id}: {len(rows)} structures, {phase or 'phase unknown'}", flush=True)
        for name, (median, spread) in rows.items():
            if name not in FLAWED.get(case.id, ()):
                found[name].append((phase, median, spread))
    vocabulary = load_vocabulary()
    structures = {name: of_structure(found[name]) for name in vocabulary.names if name in found}
    write(structures, scans)


def cases(data: Path) -> Iterator[Case]:
    """The scans of the training split that have labels."""
    for case in read_manifest(data / "manifest.json"):
        if case.split == "training" and (case.labels or case.labels_maisi):
            yield case
    for row in json.loads((data / "label_maps" / "index.json").read_text(encoding="utf-8")):
        if row["split"] == "training" and row["image"]:
            yield Case(id=row["id"], image=data / row["image"], labels_maisi=data / row["labels"])


def measured(case: Case) -> dict[str, tuple[float, float]]:
    """Median and spread by structure of one scan."""
    labels = own_labels(case, DROP)
    if labels is None:
        return {}
    vocabulary = load_vocabulary()
    left_out = {id for name in NOT_JUDGED for id in vocabulary.group(name)}
    return {
        vocabulary.name(id): (look.median, look.spread)
        for id, look in looks(case_volume(case), labels).items()
        if look.voxels >= LEAST_VOXELS and id not in left_out
    }


def of_structure(rows: list[tuple[str | None, float, float]]) -> StructureStatistics:
    phases = {
        phase: of_scans([(m, s) for p, m, s in rows if p == phase])
        for phase in ("plain", "contrast")
        if any(p == phase for p, _, _ in rows)
    }
    return StructureStatistics(**of_scans([(m, s) for _, m, s in rows]).model_dump(), phases=phases)


def of_scans(rows: list[tuple[float, float]]) -> ScanStatistics:
    medians, spreads = np.array(rows).T
    is_many = len(rows) >= MANY_SCANS
    low, high = np.percentile(medians, (5, 95)) if is_many else (medians.min(), medians.max())
    sd = np.diff(np.percentile(medians, (16, 84)))[0] / 2 if is_many else medians.std(ddof=min(1, len(rows) - 1))
    return ScanStatistics(
        count=len(rows),
        median=round(float(np.median(medians)), 1),
        sd=round(float(sd), 1),
        least=round(float(low), 1),
        greatest=round(float(high), 1),
        spread=round(float(spreads.mean()), 1),
    )


def write(structures: dict[str, StructureStatistics], scans: int) -> None:
    head = [
        "# Median HU of structures in real CTs: how many scans, the median of their medians, standard deviation, least",
        f"# and greatest (from {MANY_SCANS} scans on half of what the middle 68 % span, 5th and 95th percentile), mean",
        "# spread within a scan. Values are of the core of each structure, not its surface. Made by",
        "# benchmarks/reference_hu.py.",
        f"source: {scans} scans with labels (TCIA, TotalSegmentator, OpenKBP, SPL, VerSe; training split)",
        f"contrast_hu: {CONTRAST_HU:g}  # an aorta that is brighter is full of contrast medium",
        "structures:",
    ]
    rows = [f"  {name}: {in_line(row)}" for name, row in structures.items()]
    path = Path(references.__file__).with_name("reference_hu.yaml")
    path.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    print(f"{len(rows)} structures: {path}")


def in_line(row: StructureStatistics) -> str:
    values = row.model_dump(exclude_defaults=True)
    return yaml.safe_dump(values, default_flow_style=True, width=1000, sort_keys=False).strip()


if __name__ == "__main__":
    main()
