"""A helper: volumes and label maps of a result, resampled to a grid and written in other files. It imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.door import open_labels, open_volume
from maisi.pipelines.clinical import ClinicalCase, write_slices, write_structures
from maisi.service.helper import answer
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.origin import known_provenance
from maisi.space.reading import ReadOptions
from maisi.space.resample import resample

SLICES = ".dcm"


def regrid(question: Mapping[str, Any]) -> dict[str, Any]:
    """Images and masks on the grid of the question, written to the working directory; gives the names of all files.

    `samples` are pairs of files of `source`; `endings` those of images and masks.
    """
    shape, spacing = tuple(question["size"]), tuple(question["spacing"])
    source = Path(question["source"])
    for stem, image, mask in question["samples"]:
        case = _regridded(stem, source / image, source / mask, shape, spacing)
        _write(case, *question["endings"])
    return {"files": sorted(str(path) for path in Path().rglob("*") if path.is_file())}


def _regridded(stem: str, image: Path, mask: Path, shape: Any, spacing: Any) -> ClinicalCase:
    volume, _ = open_volume(image, ReadOptions(trust_hu=True))
    labels, _ = open_labels(mask)
    grid = _grid(volume.grid, shape, spacing)
    if grid is not volume.grid:
        volume, labels = resample(volume, grid), resample(labels, grid)
    return ClinicalCase(stem, volume, labels, load_vocabulary(), known_provenance(image), known_provenance(mask))


def _grid(grid: Grid, shape: Any, spacing: Any) -> Grid:
    """A grid of that shape and spacing about the same middle; the grid itself where it is that already."""
    if grid.shape == shape and all(abs(a - b) < 1e-4 for a, b in zip(grid.spacing, spacing, strict=True)):
        return grid
    return Grid.centered(shape, spacing)


def _write(case: ClinicalCase, image: str, mask: str) -> None:
    """The files of a sample by their endings; as DICOM a folder of slices, and a segmentation of them."""
    assert case.volume is not None
    assert case.labels is not None
    stem = case.name
    if image == SLICES:
        slices = write_slices(case, Path(f"{stem}_image"))
    else:
        write_volume(case.volume, f"{stem}_image{image}", case.volume_made)
    if mask == SLICES:
        write_structures(case, slices, Path(f"{stem}_label{mask}"), "seg")
    else:
        write_labels(case.labels, f"{stem}_label{mask}", case.labels_made)


if __name__ == "__main__":
    os.umask(0o077)
    answer(regrid)
