"""Intensities as the networks see them: HU windows and MR percentiles to [0, 1] and back."""

import numpy as np

from maisi.errors import InvalidVolumeError
from maisi.space.volume import OUTSIDE, Modality

CT_WINDOW = (-1000.0, 1000.0)  # HU; Guo et al. 2024 (MAISI, arXiv 2409.11169), training transforms of the autoencoder
MR_PERCENTILES = (0.0, 99.5)
MR_SCALE = 1000.0  # MR has no unit; a generated volume is written as 1000 times its unit intensity


def to_unit(array: np.ndarray, modality: Modality = "ct") -> np.ndarray:
    """Unit intensities, float32.

    CT: the window [-1000, 1000] HU to [0, 1], clipped. MR: percentile 0 to 0 and percentile 99.5 to 1, not clipped
    above, as the released networks were trained; a constant MR raises `InvalidVolumeError`.
    """
    low, high = CT_WINDOW if _checked(modality) == "ct" else _percentiles(array)
    unit = (np.asarray(array, dtype=np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(unit, 0.0, 1.0, out=unit) if modality == "ct" else unit


def from_unit(array: np.ndarray, modality: Modality = "ct") -> np.ndarray:
    """HU in [-1000, 1000] for CT (values outside [0, 1] are clipped), unit times 1000 (not below 0) for MR, float32."""
    unit = np.asarray(array, dtype=np.float32)
    if _checked(modality) == "mr":
        return np.maximum(unit, 0) * np.float32(MR_SCALE)
    low, high = CT_WINDOW
    return np.clip(unit, 0, 1) * np.float32(high - low) + np.float32(low)


def _checked(modality: str) -> str:
    if modality not in OUTSIDE:
        raise InvalidVolumeError(f"modality {modality!r} is unknown; accepted: {', '.join(OUTSIDE)}")
    return modality


def _percentiles(array: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(array, MR_PERCENTILES).tolist()
    if high <= low:
        raise InvalidVolumeError(f"an MR whose percentiles 0 and 99.5 are both {low:g} has no contrast to scale")
    return low, high
