"""`maisi downstream run`: cases in files, synthetic ones of them, trainings, and the table; what is done stays."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from maisi.data.manifest import Case
from maisi.downstream.backends.backend import backend_of
from maisi.downstream.cell import CellResult, CellWork, carry_out_cell
from maisi.downstream.experiment import DownstreamRequest, Experiment
from maisi.downstream.given import Given, folder_cases, store_given
from maisi.downstream.page import downstream_page
from maisi.downstream.plan import (
    Cell,
    Split,
    cases_of,
    cells_of,
    divide,
    num_synthetic,
    patient_of,
    training_cases,
)
from maisi.downstream.report import DownstreamReport, FailedCell, report_of
from maisi.downstream.store import Members, StoredCase, check_no_leak, members_of, store_real
from maisi.downstream.synthetic import Variant, check_can_make, make_variant, variants_of
from maisi.errors import InvalidRequestError, RunError
from maisi.runs.spread import spread
from maisi.runs.task import Checked, Output, Run, Task
from maisi.shapes import Frozen
from maisi.storage.atomic import write_atomically

REPORT, PAGE, PLAN = "report.json", "report.html", "split.json"
CASES, CELLS = "cases", "cells"


@dataclass(frozen=True)
class Planned:
    """An experiment with all that it takes: cases, split, trainings, and synthetic cases that are there already."""

    cases: tuple[Case, ...]
    given: tuple[Given, ...]
    split: Split
    cells: tuple[Cell, ...]
    members: Members

    def real(self, cell: Cell, experiment: Experiment) -> tuple[Case, ...]:
        """The real cases that a cell trains on."""
        return training_cases(cell, experiment, self.split, self.cases)

    def variants(self, experiment: Experiment) -> tuple[Variant, ...]:
        """Every synthetic case that a training asks for, once."""
        wanted: dict[str, Variant] = {}
        for cell in self.cells if experiment.synthetic.source != "folder" else ():
            real = self.real(cell, experiment)
            wanted |= {each.id: each for each in variants_of(real, num_synthetic(cell, len(real)))}
        return tuple(wanted.values())

    def synthetic(self, cell: Cell, experiment: Experiment) -> tuple[str, ...]:
        """The ids of a cell's synthetic cases; raises `InvalidRequestError` where a folder has too few for its fold."""
        real = self.real(cell, experiment)
        count = num_synthetic(cell, len(real))
        if experiment.synthetic.source != "folder":
            return tuple(each.id for each in variants_of(real, count))
        held_out = self.split.held_out(cell.fold)
        own = [each.id for each in self.given if held_out.isdisjoint(each.patients)]
        if count > len(own):
            raise InvalidRequestError(
                f"{cell.name} takes {count} synthetic cases; {experiment.synthetic.folder} has {len(own)} for this fold"
            )
        return tuple(own[:count])


class _Clock:
    """Tells how far a stage is, and how long the rest will take by what has been done since it began."""

    def __init__(self, stage: str, run: Run, first: int = 0) -> None:
        self.stage, self.run, self.first, self.started = stage, run, first, time.monotonic()

    def tell(self, done: int, total: int) -> None:
        each = (time.monotonic() - self.started) / max(done - self.first, 1)
        left = f"{each * (total - done) / 60:.1f} min left" if done < total else "done"
        self.run.watch.on_stage(f"{self.stage}: {left}", done, total)
        if done == total:
            self.run.meter.end(self.stage)


def check(request: DownstreamRequest) -> Checked[DownstreamRequest]:
    """The request, planned; of files the manifest, the bundle and sums of synthetic cases are read."""
    experiment = request.experiment
    backend_of(experiment.training).check()
    members = members_of(experiment.structures)
    cases = cases_of(experiment)
    split = divide(cases, experiment)
    folder = experiment.synthetic.folder
    if folder is None and experiment.most_synthetic:
        check_can_make(experiment.synthetic)
    given = () if folder is None else folder_cases(folder, cases, frozenset(split.test))
    planned = Planned(cases, given, split, cells_of(experiment, split, cases), members)
    for cell in planned.cells:
        planned.synthetic(cell, experiment)  # refuses a folder of too few
    return Checked(request, planned)


def inputs(request: DownstreamRequest) -> tuple[Path, ...]:
    """The manifest."""
    return (request.experiment.manifest,) if request.experiment.manifest.is_file() else ()


def cluster_of(request: DownstreamRequest) -> tuple[str | None, int]:
    """The Ray cluster, and the cores of a training."""
    return request.across.ray, request.threads or 1


def work(checked: Checked[DownstreamRequest], run: Run) -> None:
    """Store, generate, train and test; the report is written anew after each training."""
    run.publish()  # the settings, by which a later run knows that it goes on
    request, planned = checked.request, checked.subject
    experiment: Experiment = request.experiment
    _write(run.folder / PLAN, planned.split.model_dump_json(indent=1))
    real = _real(request, planned, run)
    _check_some(real, planned, experiment, run)
    synthetic = _synthetic(request, planned, run)
    trainings = [_work(cell, planned, experiment, real, synthetic, run.folder) for cell in planned.cells]
    for each in trainings:
        check_no_leak(each.training, each.held_out)  # before hours are spent
    _check_synthetic(trainings, run)
    _train(trainings, checked, run)


def _real(request: DownstreamRequest, planned: Planned, run: Run) -> dict[str, StoredCase]:
    """Real cases in files, by id."""
    store = partial(_or_refused, make=store_real, **_place(request, planned, run))
    return _made(store, planned.cases, "read", request, run)


def _synthetic(request: DownstreamRequest, planned: Planned, run: Run) -> dict[str, StoredCase]:
    """Synthetic cases in files, by id."""
    experiment = request.experiment
    if experiment.synthetic.source == "folder":
        give = partial(_or_refused, make=store_given, **_place(request, planned, run))
        return _made(give, planned.given, "read synthetic", request, run)
    make = partial(_or_refused, make=make_variant, experiment=experiment, folder=run.folder / CASES)
    return _made(make, planned.variants(experiment), "generate", request, run)


def _place(request: DownstreamRequest, planned: Planned, run: Run) -> dict[str, Any]:
    """How cases are stored, and where."""
    return {
        "members": planned.members,
        "spacing_mm": request.experiment.spacing_mm,
        "folder": run.folder / CASES,
    }


class Refused(Frozen):
    """A case that cannot be used, and why."""

    words: str


def _or_refused(item: Any, make: Callable[..., StoredCase], **more: Any) -> StoredCase | Refused:
    """What is made of an item, or why nothing can be."""
    try:
        return make(item, **more)
    except InvalidRequestError as error:
        return Refused(words=str(error))


def _made(
    make: Callable[[Any], StoredCase | Refused], items: Sequence[Any], stage: str, request: DownstreamRequest, run: Run
) -> dict[str, StoredCase]:
    """The cases by the id of the item; those that cannot be used are told and left out.

    Raises `RunError` for what would be no different with another case: a full disk, a process that was killed.
    """
    found: dict[str, StoredCase] = {}
    clock = _Clock(stage, run)
    for done, outcome in enumerate(spread(make, items, request.across, request.threads), start=1):
        name = items[outcome.place].id
        if outcome.result is None:
            raise RunError(f"{stage}, case {name}: {outcome.error}; what is done stays: ask again to go on")
        if isinstance(outcome.result, Refused):
            run.warnings.append(f"case {name} is left out: {outcome.result.words}")
        else:
            found[name] = outcome.result
        clock.tell(done, len(items))
    return found


def _check_some(real: dict[str, StoredCase], planned: Planned, experiment: Experiment, run: Run) -> None:
    """Raises where no case is left to test, or none for one of the trainings."""
    test = [case for case in planned.cases if patient_of(case) in planned.split.test]
    sides = (test, *(planned.real(cell, experiment) for cell in planned.cells))
    if not all(any(case.id in real for case in side) for side in sides):
        first = run.warnings[0] if run.warnings else "no case"
        raise RunError(f"too few cases are left to train and to test; {first}")


def _check_synthetic(trainings: Sequence[CellWork], run: Run) -> None:
    """Raises where a training with synthetic cases would be one without: it would compare nothing."""
    for each in trainings:
        if each.cell.ratio and not any(case.synthetic for case in each.training):
            last = run.warnings[-1] if run.warnings else "no case"
            raise RunError(f"no synthetic case is left for the training {each.cell.name}; {last}")


def _work(
    cell: Cell,
    planned: Planned,
    experiment: Experiment,
    real: dict[str, StoredCase],
    synthetic: dict[str, StoredCase],
    out: Path,
) -> CellWork:
    """A training with its cases; those that failed before are left out."""
    split = planned.split
    training = [real[case.id] for case in planned.real(cell, experiment) if case.id in real]
    training += [synthetic[name] for name in planned.synthetic(cell, experiment) if name in synthetic]
    return CellWork(
        cell=cell,
        training=tuple(training),
        validation=_of_patients(split.folds[cell.fold], planned.cases, real),
        test=_of_patients(split.test, planned.cases, real),
        held_out=split.held_out(cell.fold),
        classes=tuple(experiment.structures),
        settings=experiment.training,
        spacing_mm=experiment.spacing_mm,
        tolerance_mm=experiment.tolerance_mm,
        folder=out / CASES,
        out=out / CELLS,
    )


def _of_patients(patients: Sequence[str], cases: Sequence[Case], real: dict[str, StoredCase]) -> tuple[StoredCase, ...]:
    return tuple(real[case.id] for case in cases if patient_of(case) in patients and case.id in real)


def _train(trainings: Sequence[CellWork], checked: Checked[DownstreamRequest], run: Run) -> None:
    request, planned = checked.request, checked.subject
    done = {each.cell.name: _result(each) for each in trainings}
    results = [found for found in done.values() if found is not None]
    waiting = [each for each in trainings if done[each.cell.name] is None]
    failures: list[FailedCell] = []
    clock = _Clock("train", run, first=len(results))
    for outcome in spread(train_one, waiting, request.across, request.threads):
        if outcome.result is None:
            failures.append(FailedCell(cell=waiting[outcome.place].cell, words=str(outcome.error)))
        else:
            results.append(outcome.result)
            write_report(_report(results, failures, request.experiment, planned, run), run.folder)
        clock.tell(len(results) + len(failures), len(trainings))
    if results:
        write_report(_report(results, failures, request.experiment, planned, run), run.folder)
    if failures:
        raise RunError(
            f"{len(failures)} of {len(trainings)} trainings failed; first: {failures[0].cell.name}: "
            f"{failures[0].words}; what is done stays: ask again to try them again"
        )
    run.outputs |= {run.folder / name for name in (REPORT, PAGE, PLAN)} | {each.file for each in trainings}
    run.outputs = {path for path in run.outputs if path.is_file()}


def _report(
    results: Sequence[CellResult], failures: Sequence[FailedCell], experiment: Experiment, planned: Planned, run: Run
) -> DownstreamReport:
    order = {cell.name: k for k, cell in enumerate(planned.cells)}
    in_order = sorted(results, key=lambda each: order[each.cell.name])
    left = len(planned.cells) - len(results) - len(failures)
    notes = [*run.warnings, *([f"{left} of {len(planned.cells)} trainings are not done yet"] if left else [])]
    return report_of(experiment, planned.split, in_order, failures, notes)


def write_report(report: DownstreamReport, folder: Path) -> None:
    """The report and its page."""
    _write(folder / REPORT, report.model_dump_json(indent=1))
    _write(folder / PAGE, downstream_page(report))


def train_one(work: CellWork) -> CellResult:
    """One training, in a file of its own."""
    result = carry_out_cell(work)
    _write(work.file, result.model_dump_json(indent=1))
    return result


def _result(work: CellWork) -> CellResult | None:
    return CellResult.model_validate_json(work.file.read_text(encoding="utf-8")) if work.file.is_file() else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def state_of(request: DownstreamRequest) -> tuple[str, ...]:
    """What a run goes on from: the stored cases and what was trained, with what is told of them."""
    return CASES, CELLS, PLAN, REPORT, PAGE


DOWNSTREAM = Task(
    "downstream run", DownstreamRequest, check, work, inputs, Output.STATE, cluster=cluster_of, state=state_of
)
