"""What a file must hold to be taken as a volume or a label map, and the errors that say so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from maisi.errors import InvalidLabelsError, InvalidRequestError, InvalidVolumeError
from maisi.shapes import in_words
from maisi.space.grid import Grid

Refusal = Callable[[Path, str, str], InvalidRequestError]

SPACING_RANGE_MM = (0.05, 25.0)  # from micro-CT of specimens to the thickest slices of old scanners


_NAN_ADVICE = "; where nothing was scanned write -1024, as numpy.nan_to_num(values, nan=-1024) does"


def bad_volume(path: Path, found: str, accepted: str) -> InvalidVolumeError:
    """The error for an image, to be raised."""
    return InvalidVolumeError(f"{path} is not a volume that can be used: found {found}; accepted: {accepted}")


def bad_labels(path: Path, found: str, accepted: str) -> InvalidLabelsError:
    """The error for a label map, to be raised."""
    return InvalidLabelsError(f"{path} is not a label map that can be used: found {found}; accepted: {accepted}")


def check_spacing(grid: Grid, path: Path, refuse: Refusal) -> None:
    """Nothing, or the refusal of a spacing that no scanner has (a wrong unit, most often)."""
    low, high = SPACING_RANGE_MM
    if not all(low <= s <= high for s in grid.spacing):
        spacing = in_words(grid.spacing)
        raise refuse(path, f"a spacing of {spacing} mm", f"{low:g} to {high:g} mm on each axis")


def check_content(array: np.ndarray, path: Path) -> None:
    """Nothing, or an `InvalidVolumeError` for values that are not finite or all the same."""
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        num_bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise bad_volume(path, f"{num_bad} voxels that are NaN or infinite", f"finite values{_NAN_ADVICE}")
    if low == high:
        raise bad_volume(path, f"the same value {low:g} in every voxel", "an image with content")
