"""What is on a grid: intensities (`Volume`) or structure ids (`LabelMap`)."""

from dataclasses import dataclass

import numpy as np

from maisi.errors import InvalidGridError, InvalidLabelsError, InvalidVolumeError
from maisi.shapes import Modality
from maisi.space.grid import Grid

# Value of what lies outside the field of view: the lowest HU of a 12-bit scanner for CT, no signal for MR.
OUTSIDE: dict[str, float] = {"ct": -1024.0, "mr": 0.0}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image, float32 `[x y z]` in HU for CT, on an RAS grid.

    `padding` marks voxels that were not scanned, where there are some: they hold `outside`, and no interpolation mixes
    them with what was scanned.
    """

    array: np.ndarray
    grid: Grid
    modality: Modality = "ct"
    padding: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.modality not in OUTSIDE:
            raise InvalidVolumeError(f"modality {self.modality!r} is unknown; accepted: {', '.join(OUTSIDE)}")
        if not np.issubdtype(self.array.dtype, np.number) or np.iscomplexobj(self.array):
            raise InvalidVolumeError(f"a volume holds real numbers, got {self.array.dtype}")
        _check_on_grid(self.array, self.grid)
        if self.padding is not None:
            _check_on_grid(self.padding, self.grid)
        object.__setattr__(self, "array", self.array.astype(np.float32, copy=False))

    @property
    def outside(self) -> float:
        """The value given to what lies outside the field of view."""
        return OUTSIDE[self.modality]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Structure ids, uint8 or uint16 `[x y z]`, 0 = background, on an RAS grid."""

    array: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise InvalidLabelsError(f"a label map holds uint8 or uint16 ids, got {self.array.dtype}")
        _check_on_grid(self.array, self.grid)

    @property
    def outside(self) -> int:
        return 0


def check_same_grid(labels: LabelMap, volume: "Volume | LabelMap") -> None:
    """Nothing, or an `InvalidLabelsError` that tells both grids when they are not one."""
    if not labels.grid.is_close(volume.grid):
        raise InvalidLabelsError(
            f"the label map is not on the grid of its volume: labels {labels.grid}; volume {volume.grid}. "
            "Accepted: one shape, and corners within a tenth of a voxel (resample the labels onto the volume's grid)"
        )


def _check_on_grid(array: np.ndarray, grid: Grid) -> None:
    if array.shape != grid.shape:
        raise InvalidGridError(f"an array of shape {array.shape} does not fit a grid of {grid.shape}")
    if not grid.is_ras:
        raise InvalidGridError(f"arrays are held along RAS, got {grid}; read files with maisi.space.files")


def id_counts(ids: np.ndarray) -> np.ndarray:
    """How often each id occurs in an array of uint8 or uint16, int64 by id up to the largest one."""
    counts = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    for plane in np.atleast_2d(ids):  # plane by plane: bincount widens what it counts
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return counts
