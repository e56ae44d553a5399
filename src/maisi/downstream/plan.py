"""Which patients test, which train in which fold, and the trainings that an experiment consists of."""

from collections.abc import Collection, Sequence

import numpy as np

from maisi.data.manifest import Case, read_manifest
from maisi.downstream.experiment import ALL, Experiment, NumReal, Regime
from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

LEAST_PATIENTS = 2


class Split(Frozen):
    """Patients for testing, and those of each fold of the others."""

    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]

    def training(self, fold: int) -> tuple[str, ...]:
        """The patients that train where this fold validates."""
        return tuple(patient for k, each in enumerate(self.folds) if k != fold for patient in each)

    def held_out(self, fold: int) -> frozenset[str]:
        """The patients of whom nothing may be seen in the trainings of this fold."""
        return frozenset((*self.test, *self.folds[fold]))


class Cell(Frozen):
    """One training: the fold that is left out, real cases, synthetic cases for each of them, and a seed."""

    fold: int
    num_real: NumReal
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        return f"fold_{self.fold}_real_{self.num_real}_ratio_{self.ratio:g}_seed_{self.seed}"


def patient_of(case: Case) -> str:
    """Whose scan it is; the case is its own patient where the manifest does not say."""
    return case.patient or case.id


def cases_of(experiment: Experiment) -> tuple[Case, ...]:
    """The labelled cases of the experiment's groups, in the order of the manifest."""
    everything = read_manifest(experiment.manifest)
    known = sorted({case.group for case in everything})
    wrong = [group for group in experiment.groups if group not in known]
    if wrong:
        raise InvalidRequestError(f"{experiment.manifest} has no group {wrong[0]!r}; accepted: {', '.join(known)}")
    found = tuple(
        case
        for case in everything
        if case.image is not None
        and case.modality == "ct"
        and (case.labels is not None or case.labels_maisi is not None)
        and (not experiment.groups or case.group in experiment.groups)
    )
    if not found:
        raise InvalidRequestError(f"{experiment.manifest} has no CT with labels in {', '.join(experiment.groups)}")
    return found


def divide(cases: Sequence[Case], experiment: Experiment) -> Split:
    """Patients of testing and of folds, drawn from the seed of the split alone.

    Raises `InvalidRequestError` where one side is too small, or a patient of the manifest is on both.
    """
    settings = experiment.split
    rng = np.random.default_rng(settings.seed)
    patients = sorted({patient_of(case) for case in cases})
    if settings.test == "manifest":
        test = {patient_of(case) for case in cases if case.split != "training"}
        both = sorted(test & {patient_of(case) for case in cases if case.split == "training"})
        if both:
            raise InvalidRequestError(
                f"patient {both[0]!r} has scans for training and for testing; accepted: whole patients on one side"
            )
    else:
        test = set(rng.permutation(patients)[: max(1, round(settings.share * len(patients)))].tolist())
    others = [str(patient) for patient in rng.permutation([each for each in patients if each not in test])]
    if len(test) < LEAST_PATIENTS or len(others) < max(settings.folds, LEAST_PATIENTS):
        raise InvalidRequestError(
            f"{len(patients)} patients give {len(test)} for testing and {len(others)} for {settings.folds} folds; "
            f"needed are {LEAST_PATIENTS} for testing and one in each fold"
        )
    folds = tuple(tuple(sorted(others[k :: settings.folds])) for k in range(settings.folds))
    return checked_split(Split(test=tuple(sorted(test)), folds=folds))


def checked_split(split: Split) -> Split:
    """The split; raises `InvalidRequestError` where a patient is in two parts of it."""
    seen: set[str] = set()
    for part in (split.test, *split.folds):
        twice = sorted(seen & set(part))
        if twice:
            raise InvalidRequestError(f"patient {twice[0]!r} is in two parts of the split")
        seen |= set(part)
    return split


def cells_of(experiment: Experiment, split: Split, cases: Sequence[Case]) -> tuple[Cell, ...]:
    """All trainings, regime by regime and fold by fold; one that two regimes ask for comes once."""
    found: dict[Cell, None] = {}
    for regime in experiment.regimes:
        _check_enough(regime, split, cases)
        for num_real in regime.num_real:
            found |= {
                Cell(fold=fold, num_real=num_real, ratio=ratio, seed=seed): None
                for seed in regime.seeds
                for fold in range(len(split.folds))
                for ratio in regime.ratios
            }
    return tuple(found)


def _check_enough(regime: Regime, split: Split, cases: Sequence[Case]) -> None:
    """Nothing, or the refusal of more real cases than there are, and of a ratio that gives no synthetic one."""
    least = min(len(_cases_of(split.training(fold), cases)) for fold in range(len(split.folds)))
    for wanted in regime.num_real:
        if wanted != ALL and int(wanted) > least:
            raise InvalidRequestError(
                f"num_real {wanted} is more than the {least} training cases of the smallest fold; accepted: 1 to "
                f"{least}, or all"
            )
        num_real = least if wanted == ALL else int(wanted)
        for ratio in (each for each in regime.ratios if each and not round(each * num_real)):
            raise InvalidRequestError(
                f"ratio {ratio:g} of {num_real} real cases is no synthetic case; accepted: 0, or at least "
                f"{1 / num_real:.3g}"
            )


def training_cases(cell: Cell, experiment: Experiment, split: Split, cases: Sequence[Case]) -> tuple[Case, ...]:
    """The real cases that a cell trains on; fewer ones are part of more, the same for every seed and ratio."""
    order = np.random.default_rng(experiment.split.seed).permutation(len(cases)).tolist()
    drawn = _cases_of(split.training(cell.fold), [cases[k] for k in order])
    return tuple(drawn if cell.num_real == ALL else drawn[: int(cell.num_real)])


def _cases_of(patients: Collection[str], cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if patient_of(case) in set(patients)]


def num_synthetic(cell: Cell, num_real: int) -> int:
    """Synthetic cases of a cell with so many real ones."""
    return round(cell.ratio * num_real)
