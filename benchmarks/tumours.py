"""Seconds of one core to plant and to vary each tumour in a phantom of 256 x 256 x 256 voxels.

    python benchmarks/tumours.py [--size 256] [--spacing 1.5] [--repeats 5]

Prints one line a tumour: the median and the worst of the repeats (every one with another seed), and the volume that was
got as a share of the one asked for.
"""

import argparse
import statistics
import time

import numpy as np

from maisi.anatomy.tumours import augment_tumours, plant, tumour_rows
from maisi.anatomy.tumours.shapes import ball_ml
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.draw import draw_phantom
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

DIAMETERS = {
    "hepatic tumor": 50.0,
    "lung tumor": 35.0,
    "pancreatic tumor": 22.0,
    "colon cancer primaries": 32.0,
    "bone lesion": 20.0,
    "kidney tumor": 40.0,
    "brain tumor": 40.0,
    "soft-tissue sarcoma": 90.0,
}
REGIONS = {"brain tumor": "head", "lung tumor": "chest"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--spacing", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    grid = Grid.centered((options.size,) * 3, (options.spacing,) * 3)
    maps: dict[str, LabelMap] = {}
    print(f"{'tumour':24} {'mm':>4} {'plant s':>8} {'worst':>6} {'vary s':>8} {'worst':>6} {'got':>6}")
    for name in tumour_rows():
        region = REGIONS.get(name, "abdomen")
        if region not in maps:
            maps[region] = draw_phantom(region, grid, np.random.default_rng(0))
        print(measured(maps[region], name, DIAMETERS[name], options.repeats), flush=True)


def measured(labels: LabelMap, name: str, diameter: float, repeats: int) -> str:
    """One line about a tumour."""
    planting, varying, shares = [], [], []
    for seed in range(repeats):
        start = time.process_time()
        planted = plant(labels, name, np.random.default_rng(seed), diameter_mm=diameter)
        middle = time.process_time()
        augment_tumours(planted, np.random.default_rng(seed))
        planting.append(middle - start)
        varying.append(time.process_time() - middle)
        num = np.count_nonzero(planted.array == load_vocabulary().id(name))
        shares.append(num * float(np.prod(labels.grid.spacing)) / 1000 / ball_ml(diameter))
    figures = (statistics.median(planting), max(planting), statistics.median(varying), max(varying))
    worst = max(shares, key=lambda share: abs(share - 1))
    return f"{name:24} {diameter:4.0f} " + "{:8.2f} {:6.2f} {:8.2f} {:6.2f}".format(*figures) + f" {worst:6.3f}"


if __name__ == "__main__":
    main()
