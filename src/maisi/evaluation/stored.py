"""Features of many volumes in files, one a volume: what is held in memory does not grow with their number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from maisi.errors import InvalidRequestError
from maisi.evaluation.distances import Planes
from maisi.evaluation.features import PLANES
from maisi.shapes import Size3, Spacing3

KEPT_BYTES = 256_000_000
"""Of features that stay in memory once they were read; all others are read again."""

_GRID = "grid"  # spacing (mm) and shape
MADE_OF = "made_of"
"""The entry of a file that says what its features are of, see `features_are_of`."""


def write_features(path: Path, planes: Mapping[str, np.ndarray], grid: np.ndarray, made_of: str = "") -> None:
    """Write the features of a volume, the spacing (mm) and the shape that it had, six numbers, and what made them."""
    with path.open("wb") as file:
        np.savez(file, **{_GRID: grid, MADE_OF: np.array(made_of)}, **planes)  # type: ignore[arg-type]


def features_are_of(path: Path, made_of: str) -> bool:
    """Whether features were written as made of this."""
    with np.load(path, allow_pickle=False) as file:
        return MADE_OF in file and str(file[MADE_OF]) == made_of


@dataclass(frozen=True)
class Scaling:
    """Features less their mean, divided by their deviation over real planes; those that never change are left out."""

    mean: np.ndarray
    scale: np.ndarray
    varies: np.ndarray

    @classmethod
    def of(cls, planes: Planes) -> "Scaling":
        """That of real volumes, all orientations together.

        Raises `InvalidRequestError` where no feature ever changes.
        """
        count = sum(len(volume[name]) for volume in planes for name in volume)
        mean = sum(volume[name].sum(0) for volume in planes for name in volume) / count
        square = sum(np.square(volume[name] - mean).sum(0) for volume in planes for name in volume) / count
        scale = np.sqrt(square)
        varies = scale > 1e-9 * np.maximum(1.0, np.abs(mean))
        if not varies.any():
            raise InvalidRequestError(
                f"all {len(mean)} features are the same for every real plane, so that nothing can be compared; "
                "accepted: features that depend on the image"
            )
        return cls(mean, scale, varies)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean) / np.where(self.varies, self.scale, 1.0))[:, self.varies]


class StoredPlanes(Sequence[Mapping[str, np.ndarray]]):
    """The planes of volumes in files, scaled if asked for; a volume's orientation is read when it is looked at."""

    def __init__(self, paths: Sequence[Path], scaling: Scaling | None = None) -> None:
        self.paths, self._scaling = tuple(paths), scaling
        self._kept: dict[tuple[Path, str], np.ndarray] = {}
        self._bytes = 0

    def scaled(self, scaling: Scaling) -> "StoredPlanes":
        """The same with scaled features."""
        return StoredPlanes(self.paths, scaling)

    @overload
    def __getitem__(self, index: int) -> "StoredVolume": ...
    @overload
    def __getitem__(self, index: slice) -> "StoredPlanes": ...
    def __getitem__(self, index: int | slice) -> "StoredVolume | StoredPlanes":
        if isinstance(index, slice):
            return StoredPlanes(self.paths[index], self._scaling)
        return StoredVolume(self, self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, path: Path, name: str) -> np.ndarray:
        """Features of one orientation of a volume."""
        if (path, name) in self._kept:
            return self._kept[path, name]
        with np.load(path, allow_pickle=False) as file:
            found: np.ndarray = file[name]
        found = found if self._scaling is None or name == _GRID else self._scaling(found)
        if self._bytes + found.nbytes <= KEPT_BYTES:
            self._kept[path, name] = found
            self._bytes += found.nbytes
        return found

    def orientation(self, name: str) -> "Orientation":
        """The features of one orientation of each volume."""
        return Orientation(self, name)

    def grids(self) -> list[tuple[Spacing3, Size3]]:
        """The spacing (mm) and the shape that each volume had."""
        found = [self.read(path, _GRID).tolist() for path in self.paths]
        return [(tuple(grid[:3]), tuple(int(n) for n in grid[3:])) for grid in found]  # type: ignore[misc]


@dataclass(frozen=True)
class StoredVolume(Mapping[str, np.ndarray]):
    """The features of a volume by orientation."""

    planes: StoredPlanes
    path: Path

    def __getitem__(self, name: str) -> np.ndarray:
        return self.planes.read(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(PLANES)

    def __len__(self) -> int:
        return len(PLANES)


class Orientation(Sequence[np.ndarray]):
    """The features (n, d) of one orientation of each volume, read when they are looked at."""

    def __init__(self, planes: StoredPlanes, name: str) -> None:
        self._planes, self._name = planes, name

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "Orientation": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | Orientation":
        if isinstance(index, slice):
            return Orientation(self._planes[index], self._name)
        return self._planes.read(self._planes.paths[index], self._name)

    def __len__(self) -> int:
        return len(self._planes)
