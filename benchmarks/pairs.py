"""HU of synthetic cases against the real ones that their labels come from.

    python benchmarks/pairs.py EXPERIMENT_FOLDER

Of the first synthetic case of each real one in a folder of `maisi downstream run`: the median HU of the classes, of
soft tissue (-30 to 150 HU) in a ring of 4 to 12 mm around them, of all soft tissue outside them, and of fat (-150 to
-50 HU). Prints the medians over pairs as a table in Markdown, and how well the HU of the classes follow those of their
case.
"""

import argparse
from pathlib import Path

import numpy as np

from maisi.anatomy.morphology import dilate
from maisi.downstream.store import StoredCase, stored

SOFT, FAT, RING_MM = (-30, 150), (-150, -50), (4, 12)
COLUMNS = ("", "classes", "ring of soft tissue around them", "all soft tissue", "fat")


def medians(case: StoredCase, folder: Path) -> list[float]:
    """The four medians of a case (HU)."""
    volume, classes = case.volume(folder), case.classes(folder).array > 0
    near, far = (dilate(classes, mm, volume.grid.spacing) for mm in RING_MM)
    soft, fat = ((volume.array > low) & (volume.array < high) for low, high in (SOFT, FAT))
    parts = (classes, far & ~near & soft, soft & ~classes, fat)
    return [float(np.median(volume.array[part])) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder / "cases"
    ids = sorted(path.stem.removesuffix("_synthetic_0") for path in folder.glob("*_synthetic_0.json"))
    cases = [(stored(id, folder), stored(f"{id}_synthetic_0", folder)) for id in ids]
    pairs = np.array([[medians(case, folder) for case in pair if case is not None] for pair in cases])
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, row in zip(("real", "generated"), np.median(pairs, axis=0), strict=True):
        print(f"| {name} | " + " | ".join(f"{hu:.0f}" for hu in row) + " |")
    print(f"\n{len(pairs)} pairs; correlation of the classes: {np.corrcoef(pairs[:, 0, 0], pairs[:, 1, 0])[0, 1]:.2f}")


if __name__ == "__main__":
    main()
