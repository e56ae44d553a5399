"""One training of an experiment: its cases, checked for leaks, a backend, and how the patients to test came out."""

from pathlib import Path

from maisi.downstream.backends.backend import Exercise, OnStep, backend_of
from maisi.downstream.experiment import TrainingSettings
from maisi.downstream.plan import Cell
from maisi.downstream.store import StoredCase, check_no_leak
from maisi.evaluation.segmentation import Agreement, agreement
from maisi.shapes import Frozen
from maisi.space.volume import LabelMap
from maisi.storage.folders import open_beside


class CellWork(Frozen):
    """All that one training takes; cases are in `folder`."""

    cell: Cell
    training: tuple[StoredCase, ...]
    validation: tuple[StoredCase, ...]
    test: tuple[StoredCase, ...]
    held_out: frozenset[str]
    classes: tuple[str, ...]
    settings: TrainingSettings
    spacing_mm: float
    tolerance_mm: float
    folder: Path
    out: Path

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return self.out / f"{self.cell.name}.json"


class ScoredCase(Frozen):
    """A case that was tested on, and how its classes came out."""

    id: str
    patient: str
    classes: dict[str, Agreement]


class CellResult(Frozen):
    """What a training saw, and how it did on the patients to test."""

    cell: Cell
    real: tuple[str, ...]
    synthetic: tuple[str, ...]
    tested: tuple[ScoredCase, ...]


def carry_out_cell(work: CellWork, on_step: OnStep = lambda done, total: None) -> CellResult:
    """Train and test; raises `InvalidRequestError` before, where a case has anything of a patient who is held out."""
    check_no_leak(work.training, work.held_out)
    exercise = Exercise(
        training=work.training,
        validation=work.validation,
        test=work.test,
        folder=work.folder,
        classes=work.classes,
        settings=work.settings,
        seed=work.cell.seed,
        spacing_mm=work.spacing_mm,
    )
    work.out.mkdir(parents=True, exist_ok=True)
    with open_beside(work.out) as scratch:
        found = backend_of(work.settings).segment(exercise, scratch.partial, on_step)
        tested = tuple(_tested(case, labels, work) for case, labels in found)
    return CellResult(
        cell=work.cell,
        real=tuple(case.id for case in work.training if not case.synthetic),
        synthetic=tuple(case.id for case in work.training if case.synthetic),
        tested=tested,
    )


def _tested(case: StoredCase, labels: LabelMap, work: CellWork) -> ScoredCase:
    """The classes that a case is known to have."""
    numbers = {name: (k,) for k, name in enumerate(work.classes, start=1) if name in case.known}
    agreed = agreement(case.classes(work.folder), labels, numbers, work.tolerance_mm)
    return ScoredCase(
        id=case.id, patient=case.patient, classes={n: each for n, each in agreed.items() if each.reference_ml > 0}
    )
