"""How far a volume is from its reference, in HU."""

import numpy as np
from scipy import ndimage

from maisi.errors import InvalidGridError
from maisi.shapes import Frozen
from maisi.space.volume import Volume

DATA_RANGE_HU = 2000.0
"""Width of the CT window [-1000, 1000] HU that volumes are compared in."""


class Fidelity(Frozen):
    """Agreement of two volumes: PSNR (dB, data range 2000 HU), SSIM, mean absolute error (HU)."""

    psnr_db: float
    ssim: float
    mae_hu: float


def fidelity(volume: Volume, reference: Volume) -> Fidelity:
    """PSNR, SSIM and mean absolute error after clipping both volumes to [-1000, 1000] HU.

    Raises `InvalidGridError` where the grids differ.
    """
    if not volume.grid.is_close(reference.grid):
        raise InvalidGridError(
            f"volumes on different grids cannot be compared: {volume.grid.shape} at {volume.grid.spacing} mm "
            f"and {reference.grid.shape} at {reference.grid.spacing} mm"
        )
    a, b = (np.clip(v.array, -1000.0, 1000.0).astype(np.float64) for v in (volume, reference))
    return Fidelity(psnr_db=psnr(a, b), ssim=ssim(a, b), mae_hu=float(np.abs(a - b).mean()))


def psnr(a: np.ndarray, b: np.ndarray, data_range: float = DATA_RANGE_HU) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = float(np.square(np.asarray(a, np.float64) - b).mean())
    return float("inf") if error == 0.0 else float(10.0 * np.log10(data_range**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, data_range: float = DATA_RANGE_HU) -> float:
    """Structural similarity (Wang et al., 2004), 3-D Gaussian window of 11 voxels, sigma 1.5, population covariance.

    Averaged over the voxels whose window lies inside; where an axis is shorter than 11 over all voxels of it.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b, aa, bb, ab = (_window(x) for x in (a, b, a * a, b * b, a * b))
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    inside = tuple(slice(5, -5) if n > 10 else slice(None) for n in score.shape)
    return float(score[inside].mean())


def _window(x: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(x.astype(np.float64), sigma=1.5, radius=5, mode="reflect")


def box_blur(volume: Volume, width: int = 3) -> Volume:
    """The yardstick of reconstruction: every voxel replaced by the mean of its `width`^3 neighbourhood."""
    blurred = ndimage.uniform_filter(volume.array.astype(np.float32), size=width, mode="nearest")
    return Volume(blurred, volume.grid, volume.modality)
