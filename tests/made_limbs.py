"""Small made-up CTs of limbs with a round sarcoma, as a manifest."""

import json
from pathlib import Path

import numpy as np

from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

SARCOMA = 141


def limb(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels `[x y z]` of 24^3 voxels of 8 mm: fat around muscle around bone, and a bright tumour."""
    x, y, z = np.indices((24, 24, 24)) - 11.5
    hu = np.select([np.hypot(x, y) < 2, np.hypot(x, y) < 8, np.hypot(x, y) < 10], [700.0, 50.0, -100.0], -1000.0)
    centre = rng.uniform(-1, 1, 3) * (1, 1, 6) + (5, 0, 0)
    tumour = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True)) < 3**2
    hu[tumour] = 150
    return hu + rng.normal(0, 5, hu.shape), np.where(tumour, 1, 0).astype(np.uint8)


def save_limbs(folder: Path, training: int = 5, validation: int = 2, first: int = 0) -> Path:
    """A manifest of patients p0, p1, ... (or from another number on); the last ones are of the split validation."""
    folder.mkdir(parents=True, exist_ok=True)
    grid, cases = Grid.centered((24, 24, 24), (8, 8, 8)), []
    for k in range(first, first + training + validation):
        hu, labels = limb(np.random.default_rng(k))
        write_volume(Volume(hu, grid), folder / f"limb{k}_ct.nii.gz")
        write_labels(LabelMap(labels, grid), folder / f"limb{k}_labels.nii.gz")
        cases.append(
            {
                "id": f"limb{k}",
                "group": "limbs",
                "patient": f"p{k}",
                "image": f"limb{k}_ct.nii.gz",
                "labels": f"limb{k}_labels.nii.gz",
                "label_names": {"1": "soft-tissue sarcoma"},
                "region": "leg",
                "split": "training" if k < first + training else "validation",
            }
        )
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}))
    return folder / "manifest.json"
