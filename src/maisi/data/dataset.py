"""Random patches of real and phantom volumes, for training the autoencoder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
import torch

from maisi.data.cases import case_volume
from maisi.data.lazy import LazySequence
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.shapes import ImageBatch, Modality, Size3
from maisi.space.intensity import to_unit
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import Volume


@dataclass(frozen=True)
class NamedVolumes:
    """The volumes of a case, read or made when they are asked for, the same ones every time."""

    name: str
    load: "LoadVolumes"
    modality: Modality = "ct"


@dataclass(frozen=True)
class Patches:
    """A batch of patches, (b, 1, x, y, z) in [0, 1], and of which cases they are."""

    images: ImageBatch
    cases: tuple[str, ...]


Change = Callable[[np.ndarray, Modality, np.random.Generator], np.ndarray]
"""A changed copy of a patch [x y z] in [0, 1] of a modality."""

MOST_TRIES = 8  # to find a patch that shows something
SHOWS_SOMETHING = 0.02  # of a patch's range, from its darkest to its brightest voxel


@dataclass(frozen=True)
class PatchSource:
    """Volumes in [0, 1] as 16-bit arrays, and how often each is drawn from; a lazy sequence reads what is drawn."""

    arrays: Sequence[np.ndarray]  # uint16 [x y z], 65535 = 1
    weights: np.ndarray
    names: Sequence[str] = ()
    modalities: Sequence[Modality] = ()
    num_cases: int = 1

    def draw(self, batch: int, size: Size3, rng: np.random.Generator, change: Change | None = None) -> Patches:
        """A batch of randomly flipped patches; volumes smaller than a patch are centred in air.

        A patch of one value is drawn again, a few times at most. `change` augments each.
        """
        chosen = rng.choice(len(self.arrays), size=batch, p=self.weights)
        patches = [_telling_patch(self.arrays[i], size, rng) for i in chosen]
        if change is not None:
            patches = [
                change(patch, self.modalities[i] if self.modalities else "ct", rng)
                for i, patch in zip(chosen, patches, strict=True)
            ]
        names = tuple(self.names[i] if self.names else str(i) for i in chosen)
        return Patches(torch.from_numpy(np.stack(patches)[:, None]), names)


def _telling_patch(array: np.ndarray, size: Size3, rng: np.random.Generator) -> np.ndarray:
    """A patch that shows something, or the last of a few that do not."""
    for _ in range(MOST_TRIES):
        patch = _patch(array, size, rng)
        if float(np.ptp(patch)) > SHOWS_SOMETHING:
            return patch
    return patch


def _patch(array: np.ndarray, size: Size3, rng: np.random.Generator) -> np.ndarray:
    starts = [int(rng.integers(0, max(0, n - s) + 1)) for n, s in zip(array.shape, size, strict=True)]
    part = array[tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))]
    missing = [s - n for n, s in zip(part.shape, size, strict=True)]
    part = np.pad(part, [(m // 2, m - m // 2) for m in missing])
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return part[flips].astype(np.float32) / 65535.0


LoadVolumes = Callable[[], Sequence[Volume]]
"""Reads or makes the volumes of one case, the same ones every time."""

KEPT_BYTES = 8 << 30
"""Of volumes that stay in memory between two draws."""


class CaseArrays(Sequence[np.ndarray]):
    """The volumes of cases as 16-bit arrays; a case is loaded when one of its volumes is asked for.

    All are loaded once to learn their sizes, one case after the other; the last used stay in memory, up to
    `kept_bytes`.
    """

    def __init__(self, cases: Sequence[NamedVolumes], kept_bytes: int = KEPT_BYTES) -> None:
        self._cases = LazySequence(
            [partial(_arrays, case.load) for case in cases], lambda arrays: sum(a.nbytes for a in arrays), kept_bytes
        )
        self.sizes = [[array.size for array in self._cases[case]] for case in range(len(cases))]
        self._places = [(case, k) for case, sizes in enumerate(self.sizes) for k in range(len(sizes))]
        self.names = tuple(cases[case].name for case, _ in self._places)
        self.modalities = tuple(cases[case].modality for case, _ in self._places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        case, k = self._places[index]
        return self._cases[case][k]


def _arrays(load: LoadVolumes) -> tuple[np.ndarray, ...]:
    units = (np.clip(to_unit(volume.array, volume.modality), 0, 1) for volume in load())
    return tuple(np.round(unit * 65535).astype(np.uint16) for unit in units)


def patch_source(groups: Iterable[tuple[float, Sequence[NamedVolumes]]], kept_bytes: int = KEPT_BYTES) -> PatchSource:
    """A source that draws each group with its weight, and within a group each volume by the cube root of its size."""
    loads: list[NamedVolumes] = []
    shares: list[tuple[float, int]] = []
    for weight, cases in groups:
        loads += cases
        shares.append((weight, len(cases)))
    arrays = CaseArrays(loads, kept_bytes)
    if not len(arrays):
        raise InvalidRequestError("no volume to train on; expected at least one training case with an image")
    weights, first = [], 0
    for weight, num_cases in shares:
        sizes = [size for case in arrays.sizes[first : first + num_cases] for size in case]
        roots = np.array([float(size) ** (1 / 3) for size in sizes])
        weights += [weight * share for share in roots / max(roots.sum(), 1e-9)]
        first += num_cases
    return PatchSource(arrays, np.array(weights) / sum(weights), arrays.names, arrays.modalities, len(loads))


def at_spacings(case: Case, spacings: Sequence[float]) -> list[Volume]:
    """The volume of a case as stored, and resampled to each isotropic spacing (mm) that is coarser than it."""
    volume = case_volume(case)
    coarser = [s for s in spacings if s > 1.2 * max(volume.grid.spacing)]
    return [volume] + [resample(volume, with_spacing(volume.grid, (s, s, s))) for s in coarser]
