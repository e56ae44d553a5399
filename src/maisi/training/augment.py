"""Random changes of training patches.

Those of volumes alone are MONAI's transforms (MAISI, arXiv 2409.11169, supplement B); labelled volumes are turned and
bent together with their labels in one interpolation.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import ndimage
from scipy.spatial.transform import Rotation

from maisi.data.labelled import LabelledArrays
from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen, Modality, Size3
from maisi.space.volume import OUTSIDE

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


# Labelled volumes -----------------------------------------------------------------------------------------------------


class Deformation(Frozen):
    """How patches of labelled volumes are chosen and changed.

    With `probability` each: turned by up to `rotation` (rad) about each axis and scaled by up to a factor 1 + `scale`
    up or down; bent by displacements of `bend_mm` (standard deviation) at knots `knots_mm` apart; stretched about 0 HU
    by up to a factor 1 + `stretch`, with a shift of up to `shift_hu`; blurred by up to `blur_voxels`; with noise of up
    to `noise_hu` (standard deviations). Nothing is mirrored: left and right are classes of their own.
    """

    on_structure: float = Field(default=0.7, ge=0, le=1)  # how often a structure drawn at random is near the middle
    probability: float = Field(default=0.7, ge=0, le=1)
    rotation: float = Field(default=0.2, ge=0)
    scale: float = Field(default=0.2, ge=0, lt=1)
    bend_mm: float = Field(default=6.0, ge=0)
    knots_mm: float = Field(default=60.0, gt=0)
    stretch: float = Field(default=0.1, ge=0, lt=1)
    shift_hu: float = Field(default=15.0, ge=0)
    blur_voxels: float = Field(default=0.6, ge=0)
    noise_hu: float = Field(default=30.0, ge=0)


def deformed(
    case: LabelledArrays, size: Size3, config: Deformation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A changed patch of a case: HU, float32, and ids, uint8, both of `size` voxels; air where the case ends."""
    middle = _middle(case.ids, size, config, rng)
    places = np.indices(size, dtype=np.float32).reshape(3, -1) - (np.array(size, np.float32)[:, None] - 1) / 2
    if rng.random() < config.probability:
        angles = rng.uniform(-config.rotation, config.rotation, 3)
        places = _zoom(config.scale, rng) * (Rotation.from_euler("xyz", angles).as_matrix().astype(np.float32) @ places)
    if rng.random() < config.probability:
        places = places + _bends(size, config, case.grid.spacing[0], rng)
    places += middle[:, None]
    hu = ndimage.map_coordinates(case.hu, places, np.float32, order=1, cval=OUTSIDE["ct"]).reshape(size)
    ids = ndimage.map_coordinates(case.ids, places, np.uint8, order=0, cval=0).reshape(size)
    return _as_another_scanner(hu, config, rng), ids


def _middle(ids: np.ndarray, size: Size3, config: Deformation, rng: np.random.Generator) -> np.ndarray:
    """The voxel in the middle of a patch, so that it leaves the case no further than it must."""
    shape = np.array(ids.shape)
    at = rng.uniform(0, shape - 1)
    if rng.random() < config.on_structure and ids.any():
        present = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[1:]) + 1
        voxels = np.flatnonzero(ids == rng.choice(present))
        at = np.array(np.unravel_index(rng.choice(voxels), ids.shape)) + rng.uniform(-0.25, 0.25, 3) * size
    half = (np.minimum(size, shape) - 1) / 2
    return np.clip(at, half, shape - 1 - half).astype(np.float32)


def _zoom(scale: float, rng: np.random.Generator) -> np.float32:
    return np.float32(np.exp(rng.uniform(-1, 1) * np.log1p(scale)))


def _bends(size: Size3, config: Deformation, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth displacements (3, voxels), in voxels."""
    knots = [max(2, round(n * spacing_mm / config.knots_mm) + 1) for n in size]
    coarse = rng.normal(0.0, config.bend_mm / spacing_mm, (1, 3, *knots)).astype(np.float32)
    fine = F.interpolate(torch.from_numpy(coarse), size=size, mode="trilinear", align_corners=True)
    return fine.reshape(3, -1).numpy()


def _as_another_scanner(hu: np.ndarray, config: Deformation, rng: np.random.Generator) -> np.ndarray:
    """Values of the body as another scanner, contrast medium or dose might show them; air stays."""
    if rng.random() < config.probability:
        changed = hu * _zoom(config.stretch, rng) + np.float32(rng.uniform(-1, 1) * config.shift_hu)
        hu = np.where(hu > -900.0, changed, hu)
    if rng.random() < config.probability:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0, config.blur_voxels))
    if rng.random() < config.probability:
        hu = hu + rng.normal(0.0, rng.uniform(0, config.noise_hu), hu.shape).astype(np.float32)
    return hu
