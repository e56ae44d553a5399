"""A helper: volumes and label maps of a result, resampled to a grid and written in other files. It imports no torch."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidRequestError
from maisi.service.helper import answer
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.reading import ReadOptions
from maisi.space.resample import resample

_NAMES = {"ct": "image", "labels": "label"}
_PARTS = re.compile(r"(?P<stem>.+)_(?P<what>ct|labels)\.nii(\.gz)?")
WRITTEN = (".nii", ".nii.gz")


def regrid(question: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a result on the grid of the question, written to the working directory; gives their names."""
    shape, spacing = tuple(question["size"]), tuple(question["spacing"])
    written = []
    for name in question["files"]:
        matched = _PARTS.fullmatch(name)
        assert matched is not None
        ending = question["endings"][matched["what"]]
        if ending not in WRITTEN:
            raise InvalidRequestError(f"files of {ending} are not offered; accepted: {', '.join(WRITTEN)}")
        target = f"{matched['stem']}_{_NAMES[matched['what']]}{ending}"
        _regridded(Path(question["source"]) / name, matched["what"], shape, spacing, Path(target))
        written.append(target)
    return {"files": written}


def _regridded(source: Path, what: str, shape: Any, spacing: Any, target: Path) -> None:
    if what == "labels":
        labels, _ = open_labels(source)
        grid = _grid(labels.grid, shape, spacing)
        write_labels(labels if grid is labels.grid else resample(labels, grid), target)
        return
    volume, _ = open_volume(source, ReadOptions(trust_hu=True))
    grid = _grid(volume.grid, shape, spacing)
    write_volume(volume if grid is volume.grid else resample(volume, grid), target)


def _grid(grid: Grid, shape: Any, spacing: Any) -> Grid:
    """A grid of that shape and spacing about the same middle; the grid itself where it is that already."""
    if grid.shape == shape and all(abs(a - b) < 1e-4 for a, b in zip(grid.spacing, spacing, strict=True)):
        return grid
    return Grid.centered(shape, spacing)


if __name__ == "__main__":
    os.umask(0o077)
    answer(regrid)
