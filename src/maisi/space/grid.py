"""Where voxels lie: a shape and the affine from voxel index to world."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maisi.errors import InvalidGridError
from maisi.shapes import Size3, Spacing3, in_words

# Two grids are one when no corner voxel moves by more than this part of a voxel: float32 headers and quaternions round,
# and a tenth of a voxel changes no nearest neighbour.
TOLERANCE_VOXELS = 0.1

EDGE = 1e-6
"""Of a voxel: what a border may be off by rounding."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres; `affine` takes a voxel index to RAS+ world coordinates in mm.

    Raises `InvalidGridError` for an empty shape and for an affine that is not finite, not 4x4 or not invertible.
    """

    shape: Size3
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = _checked_shape(self.shape)
        affine = _checked_affine(self.affine)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def centered(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Grid":
        """An RAS grid whose field of view has its centre at world 0; spacing in mm."""
        origin = -np.array(checked_spacing(spacing)) * (np.array(_checked_shape(shape)) - 1) / 2
        return cls.axis_aligned(shape, spacing, origin.tolist())

    @classmethod
    def axis_aligned(cls, shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float]) -> "Grid":
        """An RAS grid with voxel (0, 0, 0) at `origin` (mm); spacing in mm."""
        affine = np.diag([*checked_spacing(spacing), 1.0])
        affine[:3, 3] = origin
        return cls(_checked_shape(shape), affine)

    @property
    def spacing(self) -> Spacing3:
        """Distance of neighbouring voxel centres along each array axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def origin(self) -> Spacing3:
        """World position of voxel (0, 0, 0), mm."""
        x, y, z = self.affine[:3, 3].tolist()
        return x, y, z

    @property
    def fov_mm(self) -> Spacing3:
        """Edge lengths of the whole field of view, voxel edge to voxel edge."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    @property
    def num_voxels(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_ras(self) -> bool:
        """Whether the array axes run exactly along right, anterior and superior."""
        matrix = self.affine[:3, :3]
        return bool(np.all(matrix == np.diag(np.diag(matrix))) and np.all(np.diag(matrix) > 0))

    def world(self, index: np.ndarray) -> np.ndarray:
        """World positions (mm) of voxel indices (..., 3); fractional indices are allowed."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: np.ndarray) -> np.ndarray:
        """Fractional voxel indices of world positions (..., 3) in mm."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world, np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def corners(self) -> np.ndarray:
        """World positions (8, 3) of the corner voxels' centres."""
        return self.world(np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(self.shape) - 1))

    def within(self, window: "Grid") -> tuple[slice, slice, slice]:
        """The voxels of this grid whose centres lie in another one along the same axes, up to its voxels' edges."""
        edges = window.world(np.array([[-0.5] * 3, [n - 0.5 for n in window.shape]]))
        low, high = self.index(edges) + [[-EDGE], [EDGE]]
        x, y, z = (
            slice(max(0, int(np.ceil(a))), max(0, min(n, int(np.floor(b)) + 1)))
            for a, b, n in zip(low, high, self.shape, strict=True)
        )
        return x, y, z

    def window(self, start: Sequence[float], shape: Sequence[int]) -> "Grid":
        """The grid of `shape` voxels that begins at voxel `start` of this one; it may reach outside."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(np.asarray(start))
        return Grid(_checked_shape(shape), affine)

    def is_close(self, other: "Grid", tolerance_voxels: float = TOLERANCE_VOXELS) -> bool:
        """Whether both have one shape and no corner voxel of the two lies apart by more than the tolerance."""
        if self.shape != other.shape:
            return False
        distance = np.linalg.norm(self.corners() - other.corners(), axis=1).max()
        return bool(distance <= tolerance_voxels * min(self.spacing))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, (self.affine + 0.0).tobytes()))  # + 0.0 makes -0.0 and 0.0 one

    def __str__(self) -> str:
        x, y, z = self.shape
        spacing = in_words(self.spacing, 4)
        origin = ", ".join(f"{o:.2f}" for o in self.origin)
        return f"{x}x{y}x{z} voxels of {spacing} mm from ({origin}) mm" + ("" if self.is_ras else ", not along RAS")


def checked_spacing(spacing: Sequence[float]) -> Spacing3:
    """The spacing as three floats; `InvalidGridError` where it is not three positive numbers of mm."""
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InvalidGridError(f"spacing {tuple(spacing)} is not three positive numbers of millimetres")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def _checked_shape(shape: Sequence[int]) -> Size3:
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise InvalidGridError(f"shape {tuple(shape)} is not three positive whole numbers")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _checked_affine(affine: np.ndarray) -> np.ndarray:
    affine = np.array(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise InvalidGridError(f"the affine has shape {affine.shape}; accepted: (4, 4)")
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise InvalidGridError(f"the affine is not a finite map with last row 0 0 0 1: {affine.tolist()}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # Scaled to unit columns, the determinant is the volume that the three axis directions span: 1 where orthogonal.
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise InvalidGridError(f"the affine is singular (two axes coincide or one has length 0): {affine.tolist()}")
    affine.setflags(write=False)
    return affine
