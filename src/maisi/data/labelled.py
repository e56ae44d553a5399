"""Random patches of labelled volumes, for training a segmenter: cases are read when they are drawn from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from maisi.anatomy.body import complete_labels, tissue_labels
from maisi.anatomy.segmented import admissible
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.dataset import KEPT_BYTES
from maisi.data.lazy import LazySequence
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.networks.segmenter import SegmentedClass
from maisi.shapes import Size3
from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume, check_same_grid, id_counts


@dataclass(frozen=True)
class LabelledArrays:
    """A case on the segmenter's grid: HU (int16) and structure ids (uint8) `[x y z]`, and what the ids may stand for.

    `admissible` is boolean (256, 1 + classes), see `anatomy.segmented.admissible`.
    """

    hu: np.ndarray
    ids: np.ndarray
    admissible: np.ndarray
    grid: Grid

    @property
    def num_bytes(self) -> int:
        return self.hu.nbytes + self.ids.nbytes + self.admissible.nbytes


@dataclass(frozen=True)
class NamedLabelled:
    """A case by name, read or made when it is asked for, the same every time."""

    name: str
    load: Callable[[], LabelledArrays]


Cut = Callable[[LabelledArrays, Size3, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""A patch of a case: HU, float32, and ids, uint8, both of the size that is asked for."""


@dataclass(frozen=True)
class LabelledPatches:
    """A batch: HU (b, x, y, z) float32, ids (b, x, y, z) uint8, what these may stand for (b, 256, 1 + classes)."""

    hu: np.ndarray
    ids: np.ndarray
    admissible: np.ndarray
    cases: tuple[str, ...]


@dataclass(frozen=True)
class LabelledSource:
    """Labelled cases, and how often each is drawn from."""

    cases: Sequence[NamedLabelled]
    weights: np.ndarray
    kept_bytes: int = KEPT_BYTES
    _arrays: LazySequence[LabelledArrays] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        loads = [case.load for case in self.cases]
        object.__setattr__(self, "_arrays", LazySequence(loads, lambda arrays: arrays.num_bytes, self.kept_bytes))

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, index: int) -> LabelledArrays:
        """One case as a whole."""
        return self._arrays[index]

    def draw(self, batch: int, size: Size3, rng: np.random.Generator, cut: Cut) -> LabelledPatches:
        """A batch of patches of random cases."""
        chosen = rng.choice(len(self.cases), size=batch, p=self.weights).tolist()
        cuts = [cut(self.case(index), size, rng) for index in chosen]
        return LabelledPatches(
            np.stack([hu for hu, _ in cuts]),
            np.stack([ids for _, ids in cuts]),
            np.stack([self.case(index).admissible for index in chosen]),
            tuple(self.cases[index].name for index in chosen),
        )


def labelled_source(
    groups: Iterable[tuple[float, Sequence[NamedLabelled]]], kept_bytes: int = KEPT_BYTES
) -> LabelledSource:
    """A source that draws each group with its weight, and within a group each case alike."""
    cases: list[NamedLabelled] = []
    weights: list[float] = []
    for weight, members in groups:
        if not members:
            continue
        cases += members
        weights += [weight / len(members)] * len(members)
    if not sum(weights):
        raise InvalidRequestError("no labelled volume to train on; expected a training case with an image")
    return LabelledSource(tuple(cases), np.array(weights) / sum(weights), kept_bytes)


def labelled_case(
    case: Case,
    classes: Sequence[SegmentedClass],
    spacing_mm: float,
    vocabulary: Vocabulary,
    drop: Sequence[str] = (),
) -> NamedLabelled:
    """A case of a manifest, with the labels that it has and coarse tissues elsewhere."""
    return NamedLabelled(case.id, partial(_read, case, tuple(classes), spacing_mm, vocabulary, tuple(drop)))


def _read(
    case: Case, classes: Sequence[SegmentedClass], spacing_mm: float, vocabulary: Vocabulary, drop: Sequence[str]
) -> LabelledArrays:
    volume, own = case_volume(case), own_labels(case, drop, vocabulary)
    if volume.modality != "ct":
        raise InvalidRequestError(f"case {case.id!r} is no CT, and a segmenter learns from Hounsfield units")
    if own is not None:
        check_same_grid(own, volume)
    return labelled_arrays(volume, own, classes, spacing_mm, looked_for(case, own, vocabulary), vocabulary)


def looked_for(case: Case, own: LabelMap | None, vocabulary: Vocabulary) -> set[int]:
    """The ids that were looked for in a case: those its manifest names, else those that its own labels have.

    Coarse tissues do not count: a map that has no more names nothing.
    """
    found = {vocabulary.find(name) for name in case.labels_present if vocabulary.knows(name)}
    if own is not None and not found:
        found = set(np.flatnonzero(id_counts(own.array)).tolist())
    return found - {BACKGROUND, *vocabulary.group("tissues")}


def labelled_arrays(
    volume: Volume,
    labels: LabelMap | None,
    classes: Sequence[SegmentedClass],
    spacing_mm: float,
    sought: Iterable[int],
    vocabulary: Vocabulary,
) -> LabelledArrays:
    """A volume at the segmenter's spacing, its labels, and coarse tissues where it has none.

    Tissues are those that show at this spacing: ones of a finer volume tell of bone that the coarser one averages away.
    `sought` are the ids that were looked for, see `admissible`.
    """
    grid = with_spacing(volume.grid, (spacing_mm,) * 3)
    coarser = resample(volume, grid)
    own = None if labels is None else resample(labels, grid)
    ids = tissue_labels(coarser) if own is None else complete_labels(own, coarser, vocabulary=vocabulary)
    hu = np.clip(np.rint(coarser.array), -1024, 3071).astype(np.int16)
    table = admissible(classes, set(sought) - set(vocabulary.group("tissues")), vocabulary)
    return LabelledArrays(hu, ids.array.astype(np.uint8), table, grid)
