"""How far a volume is from its reference, in HU."""

import numpy as np
from scipy import ndimage

from maisi.errors import InvalidGridError
from maisi.shapes import Frozen
from maisi.space.similarity import psnr, ssim
from maisi.space.volume import Volume


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


def box_blur(volume: Volume, width: int = 3) -> Volume:
    """The yardstick of reconstruction: every voxel replaced by the mean of its `width`^3 neighbourhood."""
    blurred = ndimage.uniform_filter(volume.array.astype(np.float32), size=width, mode="nearest")
    return Volume(blurred, volume.grid, volume.modality)
