"""Binary morphology with kernels in millimetres, and connected parts by volume.

Beyond the border a mask continues as it is at the border: what is cut off by the field of view is not eroded there.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

IN_PLANE = (True, True, False)
EVERYWHERE = (True, True, True)
FOOTPRINT_VOXELS = 3.0  # larger kernels are cheaper by a distance transform
_FAR = 1e6


def erode(
    mask: np.ndarray, radius_mm: float, spacing: Sequence[float], axes: Sequence[bool] = EVERYWHERE
) -> np.ndarray:
    """Voxels whose whole neighbourhood (a ball of `radius_mm`, over the chosen axes) is in the mask."""
    if all(radius_mm < s for s, used in zip(spacing, axes, strict=True) if used):
        return mask.copy()
    if max(radius_mm / s for s, used in zip(spacing, axes, strict=True) if used) <= FOOTPRINT_VOXELS:
        return ndimage.binary_erosion(mask, _footprint(radius_mm, spacing, axes), border_value=1)
    if mask.all():
        return mask.copy()
    sampling = [s if used else _FAR for s, used in zip(spacing, axes, strict=True)]
    return ndimage.distance_transform_edt(mask, sampling=sampling) > radius_mm


def dilate(
    mask: np.ndarray, radius_mm: float, spacing: Sequence[float], axes: Sequence[bool] = EVERYWHERE
) -> np.ndarray:
    """Voxels with some voxel of the mask within `radius_mm`."""
    return ~erode(~mask, radius_mm, spacing, axes)


def close_mask(
    mask: np.ndarray, radius_mm: float, spacing: Sequence[float], axes: Sequence[bool] = EVERYWHERE
) -> np.ndarray:
    """The mask with every slit narrower than twice the radius filled."""
    return erode(dilate(mask, radius_mm, spacing, axes), radius_mm, spacing, axes) | mask


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """The mask with the holes of each axial plane filled."""
    filled = np.empty_like(mask)
    for k in range(mask.shape[2]):
        filled[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    return filled


def parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face-connected parts: an int32 map (0 = none) and the number of voxels of each, index 0 the rest."""
    numbered, count = ndimage.label(mask, output=np.int32)
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)


def without_specks(mask: np.ndarray, smallest_ml: float, spacing: Sequence[float]) -> np.ndarray:
    """The mask without parts smaller than that."""
    numbered, sizes = parts(mask)
    keep = sizes * np.prod(spacing) >= 1000 * smallest_ml
    keep[0] = False
    return keep[numbered]


def _footprint(radius_mm: float, spacing: Sequence[float], axes: Sequence[bool]) -> np.ndarray:
    half = [int(radius_mm / s) if used else 0 for s, used in zip(spacing, axes, strict=True)]
    offsets = np.meshgrid(*[np.arange(-n, n + 1) * s for n, s in zip(half, spacing, strict=True)], indexing="ij")
    return np.asarray(sum(o**2 for o in offsets) <= radius_mm**2 + 1e-6)
