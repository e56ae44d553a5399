"""Asked against obtained sizes of organs and tumours on real label maps, and how far drawn maps are from originals.

    python benchmarks/anatomy.py MANIFEST OUT [--draws 50] [--spacing 3]

`MANIFEST` lists cases with label maps. Makes a library of those that name the organs, draws from it with sizes drawn
evenly from 0.1 to 0.9, and writes OUT/anatomy.json with correlation, bias and largest error of each structure, the
share of draws that succeeded with the reasons of those that did not, distances to the nearest map beside those between
maps, seconds, and pictures of the first ten draws.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.data.label_maps import find_maps
from maisi.data.library import INDEX, Library, add_map, entry_of, write_index
from maisi.errors import InvalidRequestError
from maisi.pipelines.asked import asked
from maisi.pipelines.label_requests import PreparingLabels
from maisi.pipelines.labels import Anatomy, GridRules, region_grid
from maisi.pipelines.library import library_source
from maisi.pipelines.prepare_labels import prepared
from maisi.pipelines.preview import preview, write_png
from maisi.space.volume import LabelMap, Volume

ORGANS = ("liver", "spleen", "pancreas", "right kidney", "stomach")
TUMOURS = ("hepatic tumor", "pancreatic tumor")
SHOWN, COMPARED = 10, 8
CHANCE = 0.5  # that an organ is asked for at all


def fill(manifest: Path, folder: Path, spacing: float) -> Library:
    """A library of the maps that name all organs, on voxels of `spacing` mm."""
    settings = PreparingLabels(enclose=True, spacing=(spacing,) * 3)
    ids = [load_vocabulary().id(name) for name in ORGANS]
    for found in find_maps(manifest):
        try:
            labels, span = prepared(found, settings)
        except InvalidRequestError:
            continue
        if np.isin(ids, labels.array).all():
            add_map(folder, labels, entry_of(labels, found.id, span, split="training"))
    write_index(folder)
    return Library.read(folder)


def wishes(rng: np.random.Generator) -> list[str]:
    """Sizes of some organs, and of a tumour in one draw of two."""
    said = [f"{name}={rng.uniform(0.1, 0.9):.3f}" for name in ORGANS if rng.random() < CHANCE]
    if rng.random() < CHANCE:
        said.append(f"{rng.choice(TUMOURS)}={rng.uniform(3, 15):.2f}ml")
    return said or [f"liver={rng.uniform(0.1, 0.9):.3f}"]


def show(drawn: Anatomy, title: str, path: Path) -> None:
    labels = drawn.labels
    assert isinstance(labels, LabelMap)
    write_png(preview(Volume(np.where(labels.array > 0, 40.0, -1000.0), labels.grid), labels, title), path)


def agreement(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How obtained volumes follow those asked for (ml)."""
    asked_ml, obtained = np.array(pairs).T
    ratio = obtained / asked_ml
    return {
        "draws": len(pairs),
        "correlation": round(float(np.corrcoef(asked_ml, obtained)[0, 1]), 5) if len(pairs) > 2 else float("nan"),
        "bias_percent": round(100 * float((ratio - 1).mean()), 3),
        "largest_error_percent": round(100 * float(np.abs(ratio - 1).max()), 3),
    }


def between(library: Library, most: int) -> list[float]:
    """Distances of maps of the library to the nearest other one."""
    likenesses = [Likeness.of(library.labels(entry)) for entry in library.entries[:most]]
    table = np.array([[1.0 if a is b else a.distance(b) for b in likenesses] for a in likenesses])
    return table.min(axis=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--spacing", type=float, default=3.0)
    options = parser.parse_args()
    folder = options.out / "library"
    library = Library.read(folder) if (folder / INDEX).is_file() else fill(options.manifest, folder, options.spacing)
    grid = region_grid("abdomen", GridRules(Limits(), 8, force=True))
    pairs: dict[str, list[tuple[float, float]]] = {}
    failed: Counter[str] = Counter()
    told: dict[str, object] = {}
    distances, seconds = [], []
    for index in range(options.draws):
        rng, started = np.random.default_rng([7, index]), time.process_time()
        said = wishes(rng)
        request = AnatomyRequest.parse(said)
        try:
            drawn = asked(library_source(library, "abdomen", grid, request), request).draw(rng, torch.Generator())
        except InvalidRequestError as error:
            failed[str(error)] += 1
            continue
        assert drawn.origin is not None
        seconds.append(time.process_time() - started)
        distances.append(drawn.origin.distance)
        for id, ml in drawn.asked.items():
            pairs.setdefault(load_vocabulary().name(id), []).append((ml, drawn.obtained[id]))
        if index < SHOWN:
            show(drawn, f"{' '.join(said)} · {drawn.origin}", options.out / f"draw_{index:02d}.png")
        told = {
            "maps": len(library.entries),
            "draws": index + 1,
            "failed": dict(failed),
            "structures": {name: agreement(found) for name, found in sorted(pairs.items())},
            "distance_to_nearest": np.round(np.percentile(distances, (0, 50, 100)), 3).tolist(),
            "cpu_seconds_a_draw": round(float(np.median(seconds)), 2),
        }
        (options.out / "anatomy.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    told["distance_between_maps"] = np.round(np.percentile(between(library, COMPARED), (0, 50, 100)), 3).tolist()
    (options.out / "anatomy.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
