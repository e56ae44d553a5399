"""The slices that a SEG or an RT-STRUCT is drawn on, and label maps laid onto them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from maisi.space.checks import bad_labels, bad_volume
from maisi.space.dicom.opening import broken_refused
from maisi.space.dicom.plane import Plane
from maisi.space.grid import Grid
from maisi.space.orientation import is_straight, ras_view, turn_to_ras
from maisi.space.volume import LabelMap


@dataclass(frozen=True, eq=False)
class Slices:
    """The images of a CT series without their pixels, in order, and their grid `[column row slice]` in RAS."""

    images: Sequence[Any]
    grid: Grid

    @classmethod
    def of_planes(cls, planes: Sequence[Plane], grid: Grid, folder: Path) -> "Slices":
        """The slices of a series in files, one a file."""
        if len({plane.path for plane in planes}) != len(planes):
            raise bad_volume(
                folder, "several slices in one file (Enhanced CT)", "a slice a file: --to dicom makes it so"
            )
        images = []
        for plane in planes:
            with broken_refused(plane.path):
                images.append(pydicom.dcmread(plane.path, stop_before_pixels=True))
        return cls(images, grid)

    def laid(self, labels: LabelMap, path: Path) -> np.ndarray:
        """The ids of a map `[column row slice]`; raises for a map on another grid, and for slices that are oblique."""
        if not is_straight(self.grid):
            raise bad_labels(
                path, "oblique or tilted slices to draw on", "slices along the axes: --to dicom makes them so"
            )
        _, upright = turn_to_ras(np.empty(self.grid.shape, bool), self.grid, 0, nearest=True)
        if not upright.is_close(labels.grid):
            raise bad_labels(path, f"labels on {labels.grid} for slices on {upright}", "labels on the grid of their CT")
        ids = np.zeros(self.grid.shape, labels.array.dtype)
        ras_view(ids, self.grid)[:] = labels.array
        return ids
