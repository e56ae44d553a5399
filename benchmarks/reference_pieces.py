"""Which structures are of one piece, by real label maps.

    python benchmarks/reference_pieces.py DATA [--coarse]

DATA holds label_maps/index.json and manifest.json. For each structure that the field of view does not cut, in the maps
of the training split, the share of its largest piece is measured at the map's own spacing and on a grid of 5 mm, as
coarse as generated maps are. Writes src/maisi/anatomy/reference_pieces.yaml: number of maps, least of these shares.

With --coarse it prints instead how many structures the check of quality would fail for their pieces, in the same maps
on grids of 3 to 16 mm, whole and cut to heights of 100 to 256 mm.
"""

import argparse
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maisi.anatomy import references
from maisi.anatomy.measure import extents, pieces
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import own_labels
from maisi.data.manifest import Case, read_manifest
from maisi.pipelines.quality.labels import PIECE_VOXELS, piece_findings, pieces_of
from maisi.space.resample import crop, resample, with_spacing
from maisi.space.volume import LabelMap

COARSE_MM = 5.0
COARSER_MM = (3.0, 5.0, 8.0, 12.0, 16.0)
HEIGHTS_MM = (100.0, 180.0, 256.0)
LEAST_VOXELS = 30
LEFT_OUT = ("targets", "tumours", "cysts", "dummies", "bowel")
"""Groups that may have several pieces; bowel is labelled in stretches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--coarse", action="store_true")
    told = parser.parse_args()
    data = told.data
    if told.coarse:
        count_failures(data)
        return
    vocabulary = load_vocabulary()
    left_out = {id for name in LEFT_OUT for id in vocabulary.group(name)}
    shares: dict[str, list[float]] = defaultdict(list)
    maps = 0
    for labels in labelled_maps(data):
        maps += 1
        whole = {id for id, extent in extents(labels).items() if not extent.is_cut} - left_out
        least = dict.fromkeys(whole, 1.0)
        for each in (labels, resample(labels, with_spacing(labels.grid, (COARSE_MM,) * 3))):
            for id, extent in extents(each).items():
                if id in whole and extent.voxels >= LEAST_VOXELS:
                    least[id] = min(least[id], pieces(each, id, extent.box).largest)
        for id, share in least.items():
            shares[vocabulary.name(id)].append(share)
    write({name: shares[name] for name in vocabulary.names if name in shares}, maps)


def count_failures(data: Path) -> None:
    """Print how many structures of real maps on coarse grids the check would fail, whole and cut."""
    vocabulary, judged, failing = load_vocabulary(), Counter[str](), Counter[str]()
    for labels in labelled_maps(data):
        for coarse in (resample(labels, with_spacing(labels.grid, (mm,) * 3)) for mm in COARSER_MM):
            for part in (coarse, *slabs(coarse)):
                found = extents(part)
                parts = pieces_of(part, found, vocabulary)
                fails = {id for id, each in piece_findings(found, parts, vocabulary).items() if each[0].level == "fail"}
                for id in parts:
                    if found[id].voxels >= PIECE_VOXELS:
                        kind = "cut" if found[id].is_cut else "whole"
                        judged[kind] += 1
                        failing[kind] += id in fails
    for kind in ("whole", "cut"):
        print(f"{kind}: {judged[kind]} structures of {PIECE_VOXELS} voxels or more, {failing[kind]} fail")


def slabs(labels: LabelMap) -> Iterator[LabelMap]:
    """The map cut to heights of fields of view, each half over the one before."""
    for height in HEIGHTS_MM:
        planes = max(1, round(height / labels.grid.spacing[2]))
        for start in range(0, labels.grid.shape[2] - planes, max(1, planes // 2)):
            yield crop(labels, (0, 0, start), (*labels.grid.shape[:2], start + planes))


def labelled_maps(data: Path) -> Iterator[LabelMap]:
    """The label maps of the training split."""
    logging.disable(logging.WARNING)
    rows = json.loads((data / "label_maps" / "index.json").read_text(encoding="utf-8"))
    cases = [
        *(Case(id=row["id"], labels_maisi=data / row["labels"]) for row in rows if row["split"] == "training"),
        *(case for case in read_manifest(data / "manifest.json") if case.labels_maisi and case.split == "training"),
    ]
    for case in cases:
        labels = own_labels(case)
        assert labels is not None
        yield labels


def write(shares: dict[str, list[float]], maps: int) -> None:
    head = [
        "# The share of the largest piece of each structure that is not cut by the field of view: number of real maps,",
        "# and the least share in them (from 20 maps on their 5th percentile). Made by benchmarks/reference_pieces.py.",
        f"source: {maps} label maps (TotalSegmentator, BTCV, TCIA head and neck, VerSe, SPL; training split)",
        "structures:",
    ]
    rows = [
        f"  {name}: [{len(found)}, {np.percentile(found, 5) if len(found) >= 20 else min(found):.3f}]"
        for name, found in shares.items()
    ]
    path = Path(references.__file__).with_name("reference_pieces.yaml")
    path.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    print(f"{len(rows)} structures: {path}")


if __name__ == "__main__":
    main()
