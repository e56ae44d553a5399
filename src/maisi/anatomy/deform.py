"""A label map seen through a smooth, invertible bending of space: another person of the same make.

Voxels vote: a new voxel asks the eight parts of itself for the label where each comes from. What would lose every vote
keeps those voxels where it has most, so that no label vanishes while there is room for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from maisi.anatomy.variation import VariationRules, variation_rules
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

CHUNK_VOXELS = 2**21  # a large grid is filled in slabs of about so many voxels
_PARTS = np.array([[x, y, z] for x in (-0.25, 0.25) for y in (-0.25, 0.25) for z in (-0.25, 0.25)])


@dataclass(frozen=True, eq=False)
class Warp:
    """Where each point of a new field of view comes from (mm): `centre + matrix @ (x - middle) + displacement(x)`."""

    matrix: np.ndarray  # (3, 3)
    middle: np.ndarray  # of the new field of view
    centre: np.ndarray  # what is seen there
    lattice: Grid
    displacement: np.ndarray  # (3, u, v, w) on the lattice, mm

    @classmethod
    def drawn(cls, grid: Grid, centre: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> "Warp":
        """A random warp onto `grid` that shows `centre` (mm) in its middle; strength 0 only moves the view there."""
        rules = variation_rules()
        scales = (1 + strength * rules.scale_sd * rng.normal()) * (1 + strength * rules.axis_sd * rng.normal(size=3))
        turn = Rotation.from_euler("xyz", strength * rules.turn_sd * rng.normal(size=3), degrees=True)
        lattice = _lattice(grid, rules)
        return cls(
            matrix=turn.as_matrix() @ np.diag(1 / np.clip(scales, 0.7, 1.4)),
            middle=grid.world((np.array(grid.shape) - 1) / 2),
            centre=np.asarray(centre, float),
            lattice=lattice,
            displacement=_flow(lattice, rng, strength, rules),
        )

    def sources(self, grid: Grid, planes: slice) -> Iterator[np.ndarray]:
        """Where the voxels of some planes of a grid come from: x, y and z (mm), float32 (x, y, planes) each."""
        world = [grid.origin[a] + grid.spacing[a] * np.arange(grid.shape[a]) for a in range(3)]
        world[2] = world[2][planes]
        shares = [_hats(at, self.lattice, axis).astype(np.float32) for axis, at in enumerate(world)]
        apart = [(at - middle).astype(np.float32) for at, middle in zip(world, self.middle, strict=True)]
        for row, centre, bend in zip(self.matrix, self.centre, self.displacement.astype(np.float32), strict=True):
            x, y, z = (float(weight) * at for weight, at in zip(row, apart, strict=True))
            bent = np.einsum("xu,yv,zw,uvw->xyz", *shares, bend, optimize=True)
            yield bent + (x[:, None, None] + y[:, None] + (z + float(centre)))

    @property
    def least_jacobian(self) -> float:
        """The smallest factor by which the warp changes a volume; positive where it folds nothing."""
        gradients = [np.gradient(u, *self.lattice.spacing) for u in self.displacement]
        jacobian = np.moveaxis(np.array(gradients), (0, 1), (-2, -1)) + self.matrix
        return float(np.linalg.det(jacobian).min())


def _hats(at: np.ndarray, lattice: Grid, axis: int) -> np.ndarray:
    """Weights (n, nodes) of linear interpolation between the nodes of an axis of a lattice at places (mm)."""
    place = np.clip((at - lattice.origin[axis]) / lattice.spacing[axis], 0, lattice.shape[axis] - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(lattice.shape[axis])))


def _lattice(grid: Grid, rules: VariationRules) -> Grid:
    shape = [int(np.ceil(length / rules.lattice_mm)) + 3 for length in grid.fov_mm]
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    origin = middle - rules.lattice_mm * (np.array(shape) - 1) / 2
    return Grid.axis_aligned(shape, (rules.lattice_mm,) * 3, origin.tolist())


def _flow(lattice: Grid, rng: np.random.Generator, strength: float, rules: VariationRules) -> np.ndarray:
    """Displacements (3, u, v, w) in mm: the flow of a smooth random velocity, by scaling and squaring."""
    velocity = np.zeros((3, *lattice.shape))
    for band in rules.bands:
        noise = rng.normal(size=velocity.shape)
        smooth = ndimage.gaussian_filter(noise, (0, *(band.width_mm / s for s in lattice.spacing)), mode="wrap")
        velocity += strength * band.rms_mm * smooth / max(float(smooth.std()), 1e-9)
    flow = velocity / 2**rules.steps
    index = np.indices(lattice.shape).astype(float)
    spacing = np.array(lattice.spacing).reshape(3, 1, 1, 1)
    for _ in range(rules.steps):
        at = index + flow / spacing
        flow = flow + np.stack([ndimage.map_coordinates(u, at, order=1, mode="nearest") for u in flow])
    return flow


def warped(labels: LabelMap, grid: Grid, warp: Warp) -> LabelMap:
    """The label map as it is seen through a warp, uint8 on `grid`."""
    array = np.zeros(grid.shape, np.uint8)
    for planes in _slabs(grid):
        array[..., planes] = _elected(_votes(labels, grid, warp, planes)).reshape(array[..., planes].shape)
    return LabelMap(_with_all(array, labels, grid, warp), grid)


def resampled(labels: LabelMap, grid: Grid) -> LabelMap:
    """The label map on another grid by vote, uint8; it stays where it is, and small structures stay there."""
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    return warped(labels, grid, Warp.drawn(grid, middle, np.random.default_rng(0), strength=0))


def _slabs(grid: Grid) -> Iterator[slice]:
    depth = max(1, CHUNK_VOXELS // (grid.shape[0] * grid.shape[1]))
    return (slice(z, min(z + depth, grid.shape[2])) for z in range(0, grid.shape[2], depth))


def _votes(labels: LabelMap, grid: Grid, warp: Warp, planes: slice) -> np.ndarray:
    """The labels (8, voxels of the planes) that the eight parts of each voxel come from."""
    padded = np.pad(labels.array.astype(np.uint8, copy=False), 1)  # what lies outside of the map is background
    steps = (_PARTS * grid.spacing) @ warp.matrix.T / labels.grid.spacing
    places = [  # in the padded map, to be rounded down
        (mm - np.float32(labels.grid.origin[axis] - 1.5 * labels.grid.spacing[axis])) / labels.grid.spacing[axis]
        for axis, mm in enumerate(warp.sources(grid, planes))
    ]
    votes = np.empty((len(steps), places[0].size), np.uint8)
    for vote, step in zip(votes, steps, strict=True):
        at = np.zeros(places[0].shape, np.int32)
        for place, move, size in zip(places, step, padded.shape, strict=True):
            at *= size
            at += np.clip(place + np.float32(move), 0, size - 1).astype(np.int32)
        vote[:] = padded.reshape(-1)[at].reshape(-1)
    return votes


def _elected(votes: np.ndarray) -> np.ndarray:
    """The label with the most votes; of several, the one that was asked for first."""
    elected = votes[0].copy()
    split = np.flatnonzero((votes != votes[0]).any(axis=0))
    few = votes[:, split]
    most = np.zeros(len(split), np.uint8)
    for vote in few:
        count = (few == vote).sum(axis=0, dtype=np.uint8)
        better = count > most
        elected[split[better]] = vote[better]
        most = np.maximum(most, count)
    return elected


def _with_all(array: np.ndarray, labels: LabelMap, grid: Grid, warp: Warp) -> np.ndarray:
    """The elected labels, and those without a voxel where they have most votes: as many voxels as their votes fill."""
    lost = np.setdiff1d(np.unique(labels.array), np.unique(array))
    if not lost.size:
        return array
    counts = {int(id): np.zeros(array.shape, np.uint8) for id in lost}
    for planes in _slabs(grid):
        votes = _votes(labels, grid, warp, planes)
        for id, count in counts.items():
            count[..., planes] = (votes == id).sum(axis=0, dtype=np.uint8).reshape(count[..., planes].shape)
    for id, count in counts.items():
        voxels = round(int(count.sum()) / len(_PARTS))
        if count.any():
            best = np.argsort(-count.reshape(-1).astype(np.int16), kind="stable")[: max(1, voxels)]
            array.reshape(-1)[best] = id
    return array
