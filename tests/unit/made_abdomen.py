"""A small abdomen in files, and the limits of a bundle that draws in it."""

from pathlib import Path

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
LIVER, TUMOUR, BODY = (VOCABULARY.id(name) for name in ("liver", "hepatic tumor", "body"))
GRID = Grid.centered((40, 36, 28), (4.0, 4.0, 4.0))
LIMITS = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(8, 8, 8), max_size=(48, 48, 48))


def write_abdomen(folder: Path) -> Path:
    """A body of soft tissue with a liver in it, as ct.nii, labels.nii and others; noise of 10 HU."""
    x, y, z = (np.abs(axis) for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in GRID.shape], indexing="ij"))
    ids = np.where(x**2 + y**2 < 0.85, BODY, 0)
    ids[(x**2 + y**2 + z**2) < 0.45] = LIVER
    hu = np.select([ids == LIVER, ids == BODY], [110.0, 40.0], -1000.0)
    hu += np.random.default_rng(0).normal(0, 10, GRID.shape) * (ids > 0)
    write_volume(Volume(hu, GRID), folder / "ct.nii")
    write_labels(LabelMap(ids.astype(np.uint8), GRID), folder / "labels.nii")
    mask = np.zeros(GRID.shape, np.uint8)
    mask[18:23, 16:21, 12:16] = 1
    write_labels(LabelMap(mask, GRID), folder / "mask.nii")
    write_labels(LabelMap(np.where(mask > 0, TUMOUR, ids).astype(np.uint8), GRID), folder / "diseased.nii")
    write_volume(Volume(np.where(mask > 0, 50.0, hu), GRID), folder / "diseased_ct.nii")
    write_labels(LabelMap(np.zeros_like(mask), GRID), folder / "nothing.nii")
    write_labels(LabelMap(mask[1:], Grid.centered((39, 36, 28), (4.0, 4.0, 4.0))), folder / "elsewhere.nii")
    write_labels(LabelMap(np.roll(mask, (-18, -16), (0, 1)), GRID), folder / "outside.nii")
    return folder
