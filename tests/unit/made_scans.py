"""A small CT of a trunk in known coordinates, and other images that users take for one."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (36, 32, 20)
AFFINE = np.array([[10.0, 0, 0, -175], [0, 10, 0, -155], [0, 0, 10, -95], [0, 0, 0, 1]])  # RAS, mm

# Ellipsoids, the later over the earlier: HU, centre and radii in mm.
TRUNK = (
    (-100, (0, 0, 0), (150, 110, 900)),
    (45, (0, 0, 0), (135, 95, 900)),
    (-850, (65, 10, 45), (45, 60, 60)),
    (-850, (-65, 10, 45), (45, 60, 60)),
    (110, (60, 5, -45), (55, 55, 40)),
    (500, (0, -60, 0), (20, 20, 900)),
    (1000, (0, -60, 0), (8, 8, 900)),
)


def world_of(affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """World positions `[x y z 3]` of the voxels, mm."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def trunk(affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE, noise_hu: float = 10.0) -> np.ndarray:
    """HU `[x y z]`, int16, not below -1024."""
    hu = np.full(shape, -1000.0)
    world = world_of(affine, shape)
    for value, centre, radii in TRUNK:
        hu[(((world - centre) / radii) ** 2).sum(-1) < 1] = value
    hu += np.random.default_rng(0).normal(0, noise_hu, shape)
    return np.maximum(np.rint(hu), -1024).astype(np.int16)


def outside_circle(shape: tuple[int, ...] = SHAPE, radius: float | None = None) -> np.ndarray:
    """Where a scanner did not measure: around a circle in each plane, radius in voxels (default: the inner circle)."""
    x, y, _ = np.indices(shape)
    middle = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    return np.hypot(x - middle[0], y - middle[1]) > (min(shape[:2]) / 2 if radius is None else radius)


def mr() -> np.ndarray:
    """A magnitude image of the same trunk: fat bright, air and bone dark, noise as magnitudes have it."""
    signal = np.interp(trunk(noise_hu=0), [-1000, -850, -100, 45, 110, 500, 1000], [0, 30, 900, 350, 450, 150, 10])
    rng = np.random.default_rng(1)
    return np.rint(np.hypot(signal + rng.normal(0, 15, SHAPE), rng.normal(0, 15, SHAPE))).astype(np.int16)


def save_scan(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI file with one place in both its forms."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path
