"""Whether generated volumes are copies: the nearest training volume of each, against that of held-out real ones.

Two distances. By features: the mean features of the planes of a volume. By image: one less the correlation of fine
anatomy (edges and textures between 8 and 32 mm) at the best shift, mirrored or not; it needs no registration, and a
copy that was shifted or mirrored is as near as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
class _Sight:
    """What is compared of a volume: features, and its fine anatomy (of norm one) in frequencies.

    `middle` is that of its field of view in the cube of the fine anatomy, in voxels.
    """

    name: str
    features: np.ndarray
    spectrum: np.ndarray
    mirrored: np.ndarray
    middle: np.ndarray

    def seen(self, is_mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Spectrum and middle as they are, or mirrored left to right."""
        if not is_mirrored:
            return self.spectrum, self.middle
        x, y, z = self.middle
        return self.mirrored, np.array((THUMB_SIZE - 1 - x, y, z))


def find_copies(
    generated: Sequence[NamedImage],
    training: Sequence[NamedImage],
    held_out: Sequence[NamedImage],
    extractor: FeatureExtractor,
    protocol: PlaneProtocol,
    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Neighbours:
    """The neighbours. A generated volume is close where it is nearer than every held-out one to the training set.

    If generated volumes were new patients, one of (held-out + 1) would be close by chance: `expected_close` of them.
    """
    total, told, sights = len(generated) + len(training) + len(held_out), 0, []
    for images in (training, held_out, generated):
        found = []
        for image in images:
            found.append(_sight(image, extractor, protocol))
            told += 1
            on_stage("features", told, total)
        sights.append(found)
    there, unseen, made = sights
    features = np.stack([sight.features for sight in there])
    scale, asked = np.maximum(features.std(0), 1e-6), [*unseen, *made]
    neighbours = []
    for k, sight in enumerate(asked, start=1):
        neighbours.append(_neighbour(sight, there, scale))
        on_stage("neighbours", k, len(asked))
    return judged(neighbours[len(unseen) :], neighbours[: len(unseen)], len(training))


def _sight(image: NamedImage, extractor: FeatureExtractor, protocol: PlaneProtocol) -> _Sight:
    volume = image.read()
    planes = features_of(image.name, volume, extractor, protocol)
    means, fine = np.concatenate([planes[key].mean(0) for key in sorted(planes)]), fine_anatomy(volume)
    as_it_is, mirrored = (np.fft.rfftn(cube).astype(np.complex64) for cube in (fine.array, fine.array[::-1]))
    middle = (_middle(volume.grid) - np.array(fine.grid.origin)) / THUMB_MM
    return _Sight(image.name, means, as_it_is, mirrored, middle)


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


def _neighbour(sight: _Sight, others: Sequence[_Sight], scale: np.ndarray) -> Neighbour:
    apart = [float(np.sqrt(np.square((sight.features - o.features) / scale).mean())) for o in others]
    by_features = int(np.argmin(apart))
    best = (np.inf, 0, False, 0)
    for k, other in enumerate(others):
        for is_mirrored in (False, True):
            own, _ = sight.seen(is_mirrored)
            likeness = np.fft.irfftn(other.spectrum * np.conj(own), s=(THUMB_SIZE,) * 3, axes=(0, 1, 2))
            place = int(likeness.argmax())
            best = min(best, (1 - float(likeness.flat[place]), k, is_mirrored, place))
    distance, nearest, mirrored, place = best
    x, y, z = (_shift(place) + THUMB_MM * (sight.seen(mirrored)[1] - others[nearest].middle)).tolist()
    return Neighbour(
        name=sight.name,
        nearest=others[nearest].name,
        distance=max(0.0, distance),
        nearest_by_features=others[by_features].name,
        features=apart[by_features],
        mirrored=mirrored,
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
