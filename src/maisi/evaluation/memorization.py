"""Whether generated volumes are copies: the nearest training volume of each, against that of held-out real ones.

Two distances. By features: the mean features of the planes of a volume. By image: one less the correlation of fine
anatomy (edges and textures between 8 and 32 mm) at the best shift, mirrored or not; it needs no registration, and a
copy that was shifted or mirrored is as near as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy import ndimage

from maisi.evaluation.features import FeatureExtractor, PlaneProtocol
from maisi.evaluation.neighbours import Neighbour, Neighbours, judged, usual_distance
from maisi.evaluation.sets import NamedImage, features_of
from maisi.evaluation.stored import MADE_OF
from maisi.shapes import Frozen, Spacing3
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import Volume

THUMB_MM, THUMB_SIZE = 8.0, 64
AT_A_TIME = 100  # training volumes, of about 2 MB each


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


def write_sight(path: Path, sight: Sight, made_of: str) -> None:
    """Write a sight, and what it was made of, as `features_are_of` finds it."""
    entries = {"name": sight.name, "features": sight.features, "fine": sight.fine, "middle": sight.middle}
    with path.open("wb") as file:
        np.savez_compressed(file, **{MADE_OF: np.array(made_of)}, **entries)  # type: ignore[arg-type]


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
    among = _Features.of(training)
    unseen = _neighbours(held_out, training, among, partial(on_stage, "neighbours of what was held out"))
    usual_distance(unseen)  # refuses a held-out set that is all of training
    made = _neighbours(generated, training, among, partial(on_stage, "neighbours"))
    return judged(made, unseen, len(training))


def _neighbours(
    asked: Sequence[Sight], training: Sequence[Sight], among: "_Features", on_step: Callable[[int, int], None]
) -> list[Neighbour]:
    """The neighbour of each; of the training volumes so many are in memory at a time that they take little of it."""
    nearest, starts = [_Nearest() for _ in asked], range(0, len(training), AT_A_TIME)
    for done, start in enumerate(starts):
        block = [(sight, _spectrum(sight)) for sight in training[start : start + AT_A_TIME]]
        for k, sight in enumerate(asked):
            nearest[k] = min(nearest[k], _nearest_in(block, sight), key=lambda each: each.distance)
            on_step(done * len(asked) + k + 1, len(starts) * len(asked))
    return [_neighbour(sight, found, among) for sight, found in zip(asked, nearest, strict=True)]


def _neighbour(sight: Sight, found: "_Nearest", among: "_Features") -> Neighbour:
    apart = np.sqrt(np.square((sight.features - among.values) / among.scale).mean(1))
    return Neighbour(
        name=sight.name,
        nearest=found.name,
        distance=max(0.0, found.distance),
        nearest_by_features=among.names[int(apart.argmin())],
        features=float(apart.min()),
        mirrored=found.mirrored,
        shift_mm=found.shift_mm,
    )


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


@dataclass(frozen=True)
class _Features:
    """The features (n, d) of the training volumes, and their deviation (d,)."""

    names: tuple[str, ...]
    values: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, training: Sequence[Sight]) -> "_Features":
        names, features = zip(*((sight.name, sight.features) for sight in training), strict=True)
        values = np.stack(features)
        return cls(names, values, np.maximum(values.std(0), 1e-6))


@dataclass(frozen=True)
class _Nearest:
    """The nearest of some training volumes, and where it shows the same."""

    distance: float = np.inf
    name: str = ""
    mirrored: bool = False
    shift_mm: Spacing3 = (0.0, 0.0, 0.0)


def _nearest_in(block: Sequence[tuple[Sight, np.ndarray]], sight: Sight) -> _Nearest:
    best = _Nearest()
    for is_mirrored, own in ((False, sight), (True, sight.mirrored)):
        conjugate = np.conj(_spectrum(own))
        for other, spectrum in block:
            likeness = np.fft.irfftn(spectrum * conjugate, s=(THUMB_SIZE,) * 3, axes=(0, 1, 2))
            place = int(likeness.argmax())
            distance = 1 - float(likeness.flat[place])
            if distance < best.distance:
                x, y, z = (_shift(place) + THUMB_MM * (own.middle - other.middle)).tolist()
                best = _Nearest(distance, other.name, is_mirrored, (x, y, z))
    return best


def _spectrum(sight: Sight) -> np.ndarray:
    return np.fft.rfftn(sight.fine).astype(np.complex64)


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
