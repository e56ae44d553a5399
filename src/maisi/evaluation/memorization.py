"""Whether generated volumes are copies: the nearest training volume of each, against that of held-out real ones.

Two distances. By features: the mean features of the planes of a volume. By image: one less the correlation of fine
anatomy (edges and textures between 8 and 32 mm) at the best shift, mirrored or not; it needs no registration, and a
copy that was shifted or mirrored is as near as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maisi.evaluation.features import FeatureExtractor, PlaneProtocol
from maisi.evaluation.sets import NamedImage, features_of
from maisi.shapes import Frozen, Spacing3
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import Volume

THUMB_MM, THUMB_SIZE = 8.0, 64
COPY_SHARE = 0.5
"""A volume nearer to a training volume than this share of the least distance of any held-out one is called a copy."""


class Neighbour(Frozen):
    """A volume and the training volumes that are nearest to it, by image and by features."""

    name: str
    nearest: str
    image: float
    nearest_by_features: str
    features: float
    mirrored: bool
    shift_mm: Spacing3  # of the nearest's field of view to where both show the same, middles upon each other
    is_close: bool = False
    is_copy: bool = False


class MemorizationReport(Frozen):
    """Neighbours of generated volumes, nearest first, and of held-out ones."""

    version: int = 1
    features: str
    num_training: int
    generated: tuple[Neighbour, ...]
    held_out: tuple[Neighbour, ...]
    least_image: float
    expected_close: float

    @property
    def copies(self) -> tuple[Neighbour, ...]:
        """The generated volumes that are called copies."""
        return tuple(each for each in self.generated if each.is_copy)


@dataclass(frozen=True)
class _Sight:
    """What is compared of a volume: features, and the spectrum of its fine anatomy with its norm."""

    name: str
    features: np.ndarray
    fine: np.ndarray


def find_copies(
    generated: Sequence[NamedImage],
    training: Sequence[NamedImage],
    held_out: Sequence[NamedImage],
    extractor: FeatureExtractor,
    protocol: PlaneProtocol,
    on_volume: Callable[[int, int], None] = lambda done, total: None,
) -> MemorizationReport:
    """The report. A generated volume is close where it is nearer by image than every held-out one to the training set.

    If generated volumes were new patients, one of (held-out + 1) would be close by chance: `expected_close` of them.
    """
    total, told, sights = len(generated) + len(training) + len(held_out), 0, []
    for images in (training, held_out, generated):
        found = []
        for image in images:
            found.append(_sight(image, extractor, protocol))
            told += 1
            on_volume(told, total)
        sights.append(found)
    there, unseen, made = sights
    features = np.stack([sight.features for sight in there])
    mean, scale = features.mean(0), np.maximum(features.std(0), 1e-6)
    held = tuple(_neighbour(sight, there, mean, scale) for sight in unseen)
    least = min(each.image for each in held)
    judged = [
        each.model_copy(update={"is_close": each.image < least, "is_copy": each.image < COPY_SHARE * least})
        for each in (_neighbour(sight, there, mean, scale) for sight in made)
    ]
    return MemorizationReport(
        features=extractor.name,
        num_training=len(training),
        generated=tuple(sorted(judged, key=lambda each: each.image)),
        held_out=tuple(sorted(held, key=lambda each: each.image)),
        least_image=least,
        expected_close=len(made) / (len(held) + 1),
    )


def _sight(image: NamedImage, extractor: FeatureExtractor, protocol: PlaneProtocol) -> _Sight:
    volume = image.read()
    planes = features_of(image.name, volume, extractor, protocol)
    means = np.concatenate([planes[key].mean(0) for key in sorted(planes)])
    return _Sight(image.name, means, fine_anatomy(volume))


def fine_anatomy(volume: Volume) -> np.ndarray:
    """A cube of band-passed intensities at 8 mm, of norm one, float32; zeros for a volume without any detail."""
    coarse = resample(volume, with_spacing(volume.grid, [THUMB_MM] * 3))
    unit = np.clip(to_unit(coarse.array, volume.modality), 0, 1)
    band = ndimage.gaussian_filter(unit, 0.5) - ndimage.gaussian_filter(unit, 2.0, mode="nearest")
    cube = fit(Volume(band.astype(np.float32), coarse.grid, "mr"), (THUMB_SIZE,) * 3).array
    norm = float(np.linalg.norm(cube))
    return np.asarray(cube / norm if norm > 0 else cube, np.float32)


def _neighbour(sight: _Sight, others: Sequence[_Sight], mean: np.ndarray, scale: np.ndarray) -> Neighbour:
    apart = [float(np.sqrt(np.square((sight.features - o.features) / scale).mean())) for o in others]
    by_features = int(np.argmin(apart))
    spectra = [np.conj(np.fft.rfftn(cube)) for cube in (sight.fine, sight.fine[::-1])]
    best = (np.inf, 0, False, 0)
    for k, other in enumerate(others):
        spectrum = np.fft.rfftn(other.fine)
        for mirrored, own in enumerate(spectra):
            likeness = np.fft.irfftn(spectrum * own, s=other.fine.shape, axes=(0, 1, 2))
            place = int(likeness.argmax())
            best = min(best, (1 - float(likeness.flat[place]), k, bool(mirrored), place))
    distance, nearest, mirrored_best, place = best
    return Neighbour(
        name=sight.name,
        nearest=others[nearest].name,
        image=max(0.0, distance),
        nearest_by_features=others[by_features].name,
        features=apart[by_features],
        mirrored=mirrored_best,
        shift_mm=_shift(place),
    )


def _shift(place: int) -> Spacing3:
    """The shift (mm) of an element of the circular correlation of two cubes."""
    x, y, z = (
        THUMB_MM * (k if k <= THUMB_SIZE // 2 else k - THUMB_SIZE) for k in np.unravel_index(place, (THUMB_SIZE,) * 3)
    )
    return float(x), float(y), float(z)


def in_place(real: Volume, pair: Neighbour, grid: Grid) -> Volume:
    """The nearest training volume where the generated one of a grid shows the same, mirrored if that one is."""
    middle, own = (g.world((np.array(g.shape) - 1) / 2) for g in (grid, real.grid))
    moved = Grid.axis_aligned(
        real.grid.shape, real.grid.spacing, np.array(real.grid.origin) + middle - own - pair.shift_mm
    )
    placed = resample(Volume(real.array, moved, real.modality), grid)
    return Volume(placed.array[::-1].copy(), grid, real.modality) if pair.mirrored else placed
