"""Synthetic cases of an experiment that are there already, and whose they are by their names and files."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from maisi.data.manifest import Case
from maisi.data.pairs import LABELS
from maisi.downstream.plan import patient_of
from maisi.downstream.store import Members, StoredCase, body_box, classes_in, keep, known_classes, labelled, stored
from maisi.errors import InvalidRequestError
from maisi.evaluation.sets import labelled_set
from maisi.shapes import Frozen
from maisi.space.resample import crop, resample, with_spacing
from maisi.storage.sums import sha256_of_tree

FILES = {"image": "image", "labels": "label map", "labels_maisi": "label map"}
"""Fields of a case that name files, and what these are."""

Origin = tuple[Case, str]
"""A case of the data, and what a synthetic one has of it."""


class Given(Frozen):
    """A synthetic case of a folder, and the patients of the data whose name or file it has."""

    case: Case
    patients: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.case.id


def folder_cases(path: Path, cases: Sequence[Case], held_out: frozenset[str]) -> tuple[Given, ...]:
    """The pairs of a folder or manifest; raises `InvalidRequestError` where one is of a patient who tests.

    `cases` are those of the data.
    """
    synthetic = labelled_set(path, least=1)
    told = origins(synthetic, cases)
    for case, found in zip(synthetic, told, strict=True):
        for origin, how in found:
            if patient_of(origin) in held_out:
                raise InvalidRequestError(
                    f"{path}: synthetic case {case.id!r} {how} case {origin.id!r} of patient {patient_of(origin)!r}, "
                    "who is held out for testing; accepted: cases of training patients, or another name where it is of "
                    "nobody in the data"
                )
    patients = [tuple(dict.fromkeys(patient_of(origin) for origin, _ in found)) for found in told]
    return tuple(Given(case=case, patients=each) for case, each in zip(synthetic, patients, strict=True))


def origins(synthetic: Sequence[Case], cases: Sequence[Case]) -> list[list[Origin]]:
    """For each synthetic case, the cases of the data that it is named after, or one of whose files it has.

    A name is an id, a part of it between slashes, or a patient, in capitals or not, with or without `_labels`. Files
    are told by their sums, which are those of the manifest where it has some.
    """
    copies = _copies(synthetic, cases)
    return [[*_namesakes(case, cases), *copies[case.id]] for case in synthetic]


def _namesakes(case: Case, cases: Sequence[Case]) -> Iterator[Origin]:
    names = {_spelt(name) for name in (case.id, *case.id.split("/"), patient_of(case))}
    for real in cases:
        if names & {_spelt(real.id), _spelt(patient_of(real))}:
            yield real, "is named after"


def _spelt(name: str) -> str:
    return name.casefold().removesuffix(LABELS)


def _copies(synthetic: Sequence[Case], cases: Sequence[Case]) -> dict[str, list[Origin]]:
    """By id of a synthetic case, the cases that it shares a file with; of a size that one side lacks none is read."""
    made, real = ([(case, *file) for case in each for file in _files(case)] for each in (synthetic, cases))
    sizes = {size for *_, size in made} & {size for *_, size in real}
    of_sum: dict[str, list[Case]] = defaultdict(list)
    for case, field, path, size in real:
        if size in sizes:
            of_sum[_sum(case, field, path)].append(case)
    found: dict[str, list[Origin]] = defaultdict(list)
    for case, field, path, size in made:
        if size in sizes:
            found[case.id] += [(each, f"has the {FILES[field]} of") for each in of_sum[_sum(case, field, path)]]
    return found


def _files(case: Case) -> Iterator[tuple[str, Path, int]]:
    """Field, path and bytes of the files of a case that are there; a folder counts as empty."""
    for field in FILES:
        path: Path | None = getattr(case, field)
        if path is not None and path.exists():
            yield field, path, path.stat().st_size if path.is_file() else 0


def _sum(case: Case, field: str, path: Path) -> str:
    return case.sums.get(field) or sha256_of_tree(path)


def store_given(given: Given, members: Members, spacing_mm: float, folder: Path) -> StoredCase:
    """A synthetic case of a folder in files."""
    case, name = given.case, f"{given.case.stem}_given"
    done = stored(name, folder)
    if done is not None:
        return done
    volume, own = labelled(case)
    box = body_box(volume)
    grid = with_spacing(crop(volume, *box).grid, (spacing_mm,) * 3)
    made = StoredCase(
        id=name,
        patient=patient_of(case),
        synthetic=True,
        known=known_classes(case, own, members),
        made_of=(case.id,),
        from_patients=given.patients,
    )
    return keep(made, resample(crop(volume, *box), grid), resample(classes_in(crop(own, *box), members), grid), folder)
