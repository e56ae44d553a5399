"""Cases as every backend takes them: a CT and a map of classes on one spacing, in files, and what they are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.labelled import looked_for
from maisi.data.manifest import Case
from maisi.downstream.plan import patient_of
from maisi.errors import InvalidConfigError, InvalidLabelsError, InvalidRequestError
from maisi.shapes import Frozen, few
from maisi.space.files import read_image, write_labels, write_volume
from maisi.space.label_files import read_labels
from maisi.space.reading import ReadOptions
from maisi.space.resample import crop, resample, with_spacing
from maisi.space.volume import LabelMap, Volume, check_same_grid
from maisi.storage.atomic import write_atomically

MARGIN_MM = 15.0
"""Air that is left around the body."""

BODY_HU = -500.0
"""What is denser counts to the box of the body."""

Members = dict[str, tuple[int, ...]]
"""The ids of the structures of each class, in the order of the classes, which are numbered from 1."""


class StoredCase(Frozen):
    """A case in files, `known` being the classes that were looked for in it, `made_of` the cases it is made of."""

    id: str
    patient: str
    synthetic: bool
    known: tuple[str, ...]
    made_of: tuple[str, ...] = ()
    from_patients: tuple[str, ...] = ()

    @property
    def patients(self) -> frozenset[str]:
        """All of whom something is in it."""
        return frozenset((self.patient, *self.from_patients)) - {""}

    def volume(self, folder: Path) -> Volume:
        """Its CT."""
        volume, _ = read_image(folder / f"{self.id}_ct.nii.gz", ReadOptions(trust_hu=True))  # judged when it was stored
        return volume

    def classes(self, folder: Path) -> LabelMap:
        """Its map of classes, 0 what is none."""
        return read_labels(folder / f"{self.id}_labels.nii.gz")


def members_of(structures: Mapping[str, Sequence[str]], vocabulary: Vocabulary | None = None) -> Members:
    """The ids of each class; raises `InvalidConfigError` for a name that nobody knows, or one that two classes have."""
    vocabulary = vocabulary or load_vocabulary()
    members = {name: _ids(parts, vocabulary) for name, parts in structures.items()}
    together = [id for ids in members.values() for id in ids]
    if len(set(together)) < len(together):
        twice = next(id for id in together if together.count(id) > 1)
        raise InvalidConfigError(f"structures: {vocabulary.name(twice)!r} is in two classes")
    return members


def _ids(parts: Sequence[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(id for part in parts for id in vocabulary.members(part))


def classes_in(labels: LabelMap, members: Members) -> LabelMap:
    """The map of classes of a map of structures."""
    table = np.zeros(int(labels.array.max(initial=0)) + 1, np.uint8)
    for number, ids in enumerate(members.values(), start=1):
        table[[id for id in ids if id < len(table)]] = number
    return LabelMap(table[labels.array], labels.grid)


def known_classes(case: Case, own: LabelMap, members: Members) -> tuple[str, ...]:
    """The classes all of whose structures were looked for in a case; of a group, those that have any of it.

    A structure of which a map says nothing is unknown, not absent. Raises `InvalidLabelsError` where no class is known.
    """
    vocabulary = load_vocabulary()
    sought = looked_for(case, own, vocabulary)
    known = tuple(name for name, ids in members.items() if set(ids) <= sought or (len(ids) > 2 and set(ids) & sought))
    if not known:
        named = few([vocabulary.name(id) for id in sorted(sought)]) or "nothing"
        raise InvalidLabelsError(
            f"none of the classes {', '.join(members)} is known in it; its labels name {named}; accepted: cases whose "
            "labels, or labels_present, name all structures of a class"
        )
    return known


def labelled(case: Case) -> tuple[Volume, LabelMap]:
    """The CT of a case and its own labels, on one grid."""
    volume, own = case_volume(case), own_labels(case)
    if own is None:
        raise InvalidLabelsError(f"case {case.id}: its labels name no structure")
    check_same_grid(own, volume)
    return volume, own


def body_box(volume: Volume) -> tuple[list[int], list[int]]:
    """Start and stop of the voxels around what is denser than air."""
    dense = volume.array > BODY_HU
    start, stop = [], []
    for axis, (size, spacing) in enumerate(zip(volume.grid.shape, volume.grid.spacing, strict=True)):
        at = np.flatnonzero(dense.any(axis=tuple(k for k in range(3) if k != axis)))
        if not at.size:
            raise InvalidRequestError(f"nothing in it is denser than {BODY_HU:g} HU")
        margin = round(MARGIN_MM / spacing)
        start.append(max(0, int(at[0]) - margin))
        stop.append(min(size, int(at[-1]) + 1 + margin))
    return start, stop


def store_real(case: Case, members: Members, spacing_mm: float, folder: Path) -> StoredCase:
    """A real case in files."""
    done = stored(case.stem, folder)
    if done is not None:
        return done
    volume, own = labelled(case)
    box = body_box(volume)
    volume, labels = crop(volume, *box), crop(own, *box)
    grid = with_spacing(volume.grid, (spacing_mm,) * 3)
    made = StoredCase(id=case.stem, patient=patient_of(case), synthetic=False, known=known_classes(case, own, members))
    return keep(made, resample(volume, grid), resample(classes_in(labels, members), grid), folder)


def keep(case: StoredCase, volume: Volume, classes: LabelMap, folder: Path) -> StoredCase:
    """Write a case; what it is comes last, and says that its files are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(volume, folder / f"{case.id}_ct.nii.gz")
    write_labels(classes, folder / f"{case.id}_labels.nii.gz")
    with write_atomically(folder / f"{case.id}.json") as path:
        path.write_text(case.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return case


def stored(id: str, folder: Path) -> StoredCase | None:
    """A case that is there already."""
    path = folder / f"{id}.json"
    return StoredCase.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_no_leak(training: Sequence[StoredCase], held_out: frozenset[str]) -> None:
    """Nothing, or an `InvalidRequestError` where a case to train on has anything of a patient who was held out."""
    for case in training:
        leaked = sorted(case.patients & held_out)
        if leaked:
            what = "synthetic case" if case.synthetic else "case"
            raise InvalidRequestError(
                f"{what} {case.id!r} is made of patient {leaked[0]!r}, who is held out of this training; accepted: "
                "cases of the training folds alone"
            )
