"""Random changes of training patches (MAISI, arXiv 2409.11169, supplement B), by MONAI's transforms."""

from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen, Modality

Probability = Field(default=0.0, ge=0, le=1)


class Augmentation(Frozen):
    """The probability of each change; without any, patches are only flipped, and MONAI is not needed.

    Ranges are those of the released training: bias field of degree 3 with coefficients 0 to 0.3, Gibbs noise of alpha
    0.5 to 1, gamma 0.5 to 2 and shifts of a histogram at 10 points, these four for MR; turns by quarters in each plane,
    by up to 0.1 rad about each axis, zoom 0.5 to 1.5, intensities by a factor of up to 10 % and a shift of up to 0.05.
    """

    bias_field: float = Probability
    gibbs: float = Probability
    contrast: float = Probability
    histogram_shift: float = Probability
    quarter_turns: float = Probability
    rotation: float = Probability
    zoom: float = Probability
    intensity_scale: float = Probability
    intensity_shift: float = Probability

    @property
    def is_none(self) -> bool:
        """Whether nothing is ever changed."""
        return not any(self.model_dump().values())


RELEASED = Augmentation(
    bias_field=0.3,
    gibbs=0.3,
    contrast=0.3,
    histogram_shift=0.05,
    quarter_turns=0.5,
    rotation=0.3,
    zoom=0.3,
    intensity_scale=0.3,
    intensity_shift=0.3,
)
"""The probabilities of the released training."""


def augmented(patch: np.ndarray, modality: Modality, config: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A changed copy of a patch [x y z] in [0, 1], float32 of the same shape; the same generator, the same change.

    What leaves [0, 1] is clipped, so that a change never asks the decoder for what it cannot say. A patch is turned by
    quarters in those planes where it is as long as it is wide.
    """
    if config.is_none:
        return patch
    changed: Any = patch[None]
    planes = tuple((a, b) for a, b in ((0, 1), (1, 2), (0, 2)) if patch.shape[a] == patch.shape[b])
    for transform in _transforms(config, modality, planes):
        transform.set_random_state(seed=int(rng.integers(2**31)))
        changed = transform(changed)
    array = np.asarray(changed, dtype=np.float32)[0]
    assert array.shape == patch.shape
    return np.clip(array, 0.0, 1.0)


@lru_cache(maxsize=8)
def _transforms(config: Augmentation, modality: Modality, planes: tuple[tuple[int, int], ...]) -> tuple[Any, ...]:
    try:
        from monai import transforms as of
    except ImportError as error:
        raise InvalidRequestError("augmentation needs MONAI; accepted: pip install 'maisi[train]', or none") from error
    turns = [of.RandRotate90(prob=config.quarter_turns, spatial_axes=axes) for axes in planes]
    spatial = [
        *turns,
        of.RandRotate(0.1, 0.1, 0.1, prob=config.rotation, keep_size=True, padding_mode="border"),
        of.RandZoom(prob=config.zoom, min_zoom=0.5, max_zoom=1.5, keep_size=True, padding_mode="edge"),
    ]
    of_mr = [
        of.RandBiasField(prob=config.bias_field, degree=3, coeff_range=(0.0, 0.3)),
        of.RandGibbsNoise(prob=config.gibbs, alpha=(0.5, 1.0)),
        of.RandAdjustContrast(prob=config.contrast, gamma=(0.5, 2.0)),
        of.RandHistogramShift(prob=config.histogram_shift, num_control_points=10),
    ]
    intensity = [
        of.RandScaleIntensity(prob=config.intensity_scale, factors=0.1),
        of.RandShiftIntensity(prob=config.intensity_shift, offsets=0.05),
    ]
    return (*spatial, *(of_mr if modality == "mr" else []), *intensity)
