"""Random patches of real and phantom volumes, for training the autoencoder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.shapes import ImageBatch, Size3
from maisi.space.files import read_volume
from maisi.space.intensity import to_unit
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import Volume


@dataclass(frozen=True)
class PatchSource:
    """Volumes in [0, 1] kept as 16-bit arrays, and how often each is drawn from."""

    arrays: tuple[np.ndarray, ...]  # uint16 [x y z], 65535 = 1
    weights: np.ndarray

    def draw(self, batch: int, size: Size3, rng: np.random.Generator) -> ImageBatch:
        """A batch of randomly flipped patches; volumes smaller than a patch are centred in air."""
        chosen = rng.choice(len(self.arrays), size=batch, p=self.weights)
        return torch.from_numpy(np.stack([_patch(self.arrays[i], size, rng) for i in chosen])[:, None])


def _patch(array: np.ndarray, size: Size3, rng: np.random.Generator) -> np.ndarray:
    starts = [int(rng.integers(0, max(0, n - s) + 1)) for n, s in zip(array.shape, size, strict=True)]
    part = array[tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))]
    missing = [s - n for n, s in zip(part.shape, size, strict=True)]
    part = np.pad(part, [(m // 2, m - m // 2) for m in missing])
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return part[flips].astype(np.float32) / 65535.0


def patch_source(groups: Iterable[tuple[float, Sequence[Volume]]]) -> PatchSource:
    """A source that draws each group with its weight, and within a group each volume by the cube root of its size."""
    arrays: list[np.ndarray] = []
    weights: list[float] = []
    for weight, volumes in groups:
        shares = np.array([float(volume.grid.num_voxels) ** (1 / 3) for volume in volumes])
        for volume, share in zip(volumes, shares / max(shares.sum(), 1e-9), strict=True):
            arrays.append(np.round(to_unit(volume.array, volume.modality) * 65535).astype(np.uint16))
            weights.append(weight * share)
    if not arrays:
        raise InvalidRequestError("no volume to train on; expected at least one training case with an image")
    return PatchSource(tuple(arrays), np.array(weights) / sum(weights))


def at_spacings(case: Case, spacings: Sequence[float]) -> list[Volume]:
    """The volume of a case as stored, and resampled to each isotropic spacing (mm) that is coarser than it."""
    assert case.image is not None
    volume = read_volume(case.image)
    coarser = [s for s in spacings if s > 1.2 * max(volume.grid.spacing)]
    return [volume] + [resample(volume, with_spacing(volume.grid, (s, s, s))) for s in coarser]
