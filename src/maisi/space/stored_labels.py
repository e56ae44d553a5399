"""The ids of a file of labels, whatever its format: whole numbers, along RAS, with names where the file has some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maisi.space.checks import bad_labels
from maisi.space.grid import Grid
from maisi.space.orientation import turn_to_ras
from maisi.space.reading import Finding
from maisi.space.segments import Coding
from maisi.space.volume import LabelMap

WHOLE_WITHIN = 1e-3  # how far rounding may put an id from its whole number where no scale factor does
LARGEST_ID = 65535
_IDS = f"whole numbers from 0 to {LARGEST_ID}"


@dataclass(frozen=True, eq=False)
class StoredLabels:
    """The ids of a label file, what the file itself calls them (where it does), and what was not plain about it."""

    labels: LabelMap
    names: Mapping[int, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    is_coloured: bool = False  # the ids are those of the palette given
    codings: Mapping[str, Coding] = field(default_factory=dict)  # of names, where the file has standard codes


def whole_ids(
    stored: np.ndarray, grid: Grid, path: Path, slope: float = 1.0, inter: float = 0.0
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The ids `[x y z]` of stored values in file order, and the scale factor if they were stored with one."""
    is_scaled = slope != 1 or inter != 0
    if not is_scaled and stored.dtype.kind in "iu":
        if stored.min() < 0 or stored.max() > LARGEST_ID:
            _refuse_range(stored, grid, path)
        return stored.astype(np.uint8 if stored.max() < 256 else np.uint16, copy=False), ()
    is_coarse = slope < 1 and stored.dtype.kind in "iu"
    tolerance = max(WHOLE_WITHIN, slope / 2) if is_coarse else WHOLE_WITHIN
    ids = np.empty(stored.shape, np.uint16, order="F" if stored.flags.f_contiguous else "C")
    worst = 0.0
    for k in range(stored.shape[2]):
        values = stored[:, :, k].astype(np.float64) * slope + inter
        whole = np.rint(values)
        if not (whole.min() >= 0 and whole.max() <= LARGEST_ID):  # NaN is neither
            _refuse_range(values[:, :, None], grid, path, k)
        beside = np.abs(values - whole)
        worst = max(worst, float(beside.max()))
        if worst > tolerance * (1 + 1e-6):
            example = float(values[beside > tolerance].flat[0])
            what = f"values that are not whole, such as {example:g} at {place_of(beside > tolerance, grid, k)}"
            raise bad_labels(path, what, f"{_IDS} (to within half the scale factor)")
        ids[:, :, k] = whole
    if ids.max() < 256:
        ids = ids.astype(np.uint8)
    if not is_scaled or worst == 0:
        return ids, ()
    found = f"ids stored with a scale factor of {slope:g}, up to {worst:.2g} beside whole numbers"
    return ids, (Finding(topic="format", found=found, decided="rounded to the nearest whole number"),)


def _refuse_range(values: np.ndarray, grid: Grid, path: Path, first_plane: int = 0) -> None:
    with np.errstate(invalid="ignore"):
        whole = np.rint(values.astype(np.float64))
        wrong = ~((whole >= 0) & (whole <= LARGEST_ID))
    k = int(np.argmax(wrong.any(axis=(0, 1))))
    example = float(values[:, :, k][wrong[:, :, k]].flat[0])
    where = place_of(wrong[:, :, k], grid, first_plane + k)
    raise bad_labels(path, f"{np.count_nonzero(wrong)} voxels that are no ids, such as {example:g} at {where}", _IDS)


def turned(ids: np.ndarray, grid: Grid) -> LabelMap:
    """Ids in file order as a label map along RAS."""
    return LabelMap(*turn_to_ras(ids, grid, 0, nearest=True))


def place_of(wrong: np.ndarray, grid: Grid, k: int) -> str:
    """Where the first of them is in plane k, in words."""
    i, j = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    x, y, z = grid.world(np.array([i, j, k]))
    return f"voxel ({i}, {j}, {k}) of the file, ({x:.1f}, {y:.1f}, {z:.1f}) mm"


def times(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)
