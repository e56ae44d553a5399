"""Whether generated volumes are copies: the nearest training volume of each, against that of held-out real ones.

Two distances. By features: the mean features of the planes of a volume. By image: one less the correlation of fine
anatomy (edges and textures between 8 and 32 mm) at the best shift, mirrored or not; it needs no registration, and a
copy that was shifted or mirrored is as near as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy import ndimage

from maisi.evaluation.features import FeatureExtractor, PlaneProtocol
from maisi.evaluation.neighbours import Neighbour, Neighbours, judged
from maisi.evaluation.sets import NamedImage, features_of
from maisi.shapes import Frozen
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import Volume

THUMB_MM, THUMB_SIZE = 8.0, 64


class MemorizationReport(Frozen):
    """Neighbours of volumes and of label maps, as far as they were asked for."""

    version: int = 2
    features: str
    copies: tuple[str, ...] = Field(description="Names of all that is called a copy.")
    images: Neighbours | None = None
    labels: Neighbours | None = None


@dataclass(frozen=True)
class Sight:
    """What is compared of a volume: features, and its fine anatomy, a cube of norm one (float32).

    `middle` is that of its field of view in the cube, in voxels.
    """

    name: str
    features: np.ndarray
    fine: np.ndarray
    middle: np.ndarray

    @property
    def mirrored(self) -> "Sight":
        """The same left to right; features stay."""
        x, y, z = self.middle
        return replace(self, fine=self.fine[::-1], middle=np.array((THUMB_SIZE - 1 - x, y, z)))


def sight_of(image: NamedImage, extractor: FeatureExtractor, protocol: PlaneProtocol) -> Sight:
    """What is compared of a volume; raises what reading it and features of it do."""
    volume = image.read()
    planes = features_of(image.name, volume, extractor, protocol)
    means, fine = np.concatenate([planes[key].mean(0) for key in sorted(planes)]), fine_anatomy(volume)
    middle = (_middle(volume.grid) - np.array(fine.grid.origin)) / THUMB_MM
    return Sight(image.name, means, fine.array, middle)


def sight_bytes(sight: Sight) -> int:
    """What a sight takes in memory."""
    return int(sight.features.nbytes + sight.fine.nbytes)


def write_sight(path: Path, sight: Sight, made_of: str) -> None:
    """Write a sight, and what it was made of, as `features_are_of` finds it."""
    with path.open("wb") as file:
        np.savez_compressed(
            file, name=sight.name, features=sight.features, fine=sight.fine, middle=sight.middle, made_of=made_of
        )


def read_sight(path: Path) -> Sight:
    """A sight that was written."""
    with np.load(path, allow_pickle=False) as file:
        return Sight(str(file["name"]), file["features"], file["fine"], file["middle"])


def find_copies(
    generated: Sequence[Sight],
    training: Sequence[Sight],
    held_out: Sequence[Sight],
    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Neighbours:
    """The neighbours. A generated volume is close where it is nearer than every held-out one to the training set.

    If generated volumes were new patients, one of (held-out + 1) would be close by chance: `expected_close` of them.
    """
    features = np.stack([sight.features for sight in training])
    features, scale = features.astype(np.float64), np.maximum(features.std(0), 1e-6)
    num_asked, neighbours = len(held_out) + len(generated), []
    for k, sight in enumerate(chain(held_out, generated), start=1):
        apart = np.sqrt(np.square((sight.features - features) / scale).mean(1))
        neighbours.append(_neighbour(sight, training, apart))
        on_stage("neighbours", k, num_asked)
    return judged(neighbours[len(held_out) :], neighbours[: len(held_out)], len(training))


def fine_anatomy(volume: Volume) -> Volume:
    """A cube of band-passed intensities at 8 mm, of norm one, float32; zeros for a volume without any detail."""
    coarse = resample(volume, with_spacing(volume.grid, [THUMB_MM] * 3))
    unit = np.clip(to_unit(coarse.array, volume.modality), 0, 1)
    band = ndimage.gaussian_filter(unit, 0.5) - ndimage.gaussian_filter(unit, 2.0, mode="nearest")
    cube = fit(Volume(band.astype(np.float32), coarse.grid, "mr"), (THUMB_SIZE,) * 3)
    norm = float(np.linalg.norm(cube.array))
    return Volume(np.asarray(cube.array / (norm or 1.0), np.float32), cube.grid, "mr")


def _middle(grid: Grid) -> np.ndarray:
    """The middle of a field of view in the world, mm."""
    return np.asarray(grid.world((np.array(grid.shape) - 1) / 2))


def _neighbour(sight: Sight, others: Sequence[Sight], apart: np.ndarray) -> Neighbour:
    """The nearest of the others, of whose features it is that far apart."""
    both = (sight, sight.mirrored)
    spectra = [np.conj(np.fft.rfftn(each.fine)).astype(np.complex64) for each in both]
    best, shift, found = np.inf, np.zeros(3), ("", False)
    for other in others:
        spectrum = np.fft.rfftn(other.fine).astype(np.complex64)
        for own, conjugate, is_mirrored in zip(both, spectra, (False, True), strict=True):
            likeness = np.fft.irfftn(spectrum * conjugate, s=(THUMB_SIZE,) * 3, axes=(0, 1, 2))
            place = int(likeness.argmax())
            if 1 - float(likeness.flat[place]) < best:
                best, found = 1 - float(likeness.flat[place]), (other.name, is_mirrored)
                shift = _shift(place) + THUMB_MM * (own.middle - other.middle)
    x, y, z = shift.tolist()
    return Neighbour(
        name=sight.name,
        nearest=found[0],
        distance=max(0.0, best),
        nearest_by_features=others[int(np.argmin(apart))].name,
        features=float(apart.min()),
        mirrored=found[1],
        shift_mm=(x, y, z),
    )


def _shift(place: int) -> np.ndarray:
    """The shift (mm) of an element of the circular correlation of two cubes."""
    k = np.array(np.unravel_index(place, (THUMB_SIZE,) * 3))
    return THUMB_MM * np.where(k <= THUMB_SIZE // 2, k, k - THUMB_SIZE)


def in_place(real: Volume, pair: Neighbour, grid: Grid) -> Volume:
    """The nearest training volume where the generated one of a grid shows the same, mirrored if that one is."""
    shift = _middle(grid) - _middle(real.grid) - np.array(pair.shift_mm or (0.0, 0.0, 0.0))
    moved = Grid.axis_aligned(real.grid.shape, real.grid.spacing, (np.array(real.grid.origin) + shift).tolist())
    placed = resample(Volume(real.array, moved, real.modality), grid)
    return Volume(placed.array[::-1].copy(), grid, real.modality) if pair.mirrored else placed
