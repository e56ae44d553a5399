"""The table of an experiment: fold by fold, on average, and what synthetic data change."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from maisi.downstream.cell import CellResult
from maisi.downstream.experiment import ALL, Experiment, NumReal
from maisi.downstream.plan import Cell, Split
from maisi.downstream.statistics import Difference, paired_difference
from maisi.evaluation.segmentation import Agreement
from maisi.shapes import Frozen

MEAN = "mean"
"""What the mean over classes is called in tables."""

Figure = Callable[[Agreement], float | None]


class Row(Frozen):
    """One class (or the mean over classes) at a number of real cases and a ratio.

    Figures are means over patients and seeds: Dice by fold (None where no training of it is done) and over folds, and
    of all folds surface Dice and HD95 (mm, of those that were found). Differences are from real data only.
    """

    name: str
    num_real: NumReal
    ratio: float
    num_trained_real: float
    num_synthetic: float
    seeds: int
    folds: tuple[float | None, ...]
    dice: float
    surface_dice: float
    hd95_mm: float | None
    missed: int
    tested: int
    change: Difference | None = None
    surface_change: Difference | None = None

    @property
    def counts(self) -> tuple[str, str]:
        """Real and synthetic cases of a training, on average, as text."""
        return f"{self.num_trained_real:.3g}", f"{self.num_synthetic:.3g}"


class FailedCell(Frozen):
    """A training that came to nothing, and why."""

    cell: Cell
    words: str


class DownstreamReport(Frozen):
    """An experiment with its split, its table, and each of its trainings."""

    version: int = 1
    experiment: Experiment
    split: Split
    rows: tuple[Row, ...]
    cells: tuple[CellResult, ...]
    failures: tuple[FailedCell, ...] = ()
    notes: tuple[str, ...] = ()


def report_of(
    experiment: Experiment,
    split: Split,
    cells: Sequence[CellResult],
    failures: Sequence[FailedCell] = (),
    notes: Sequence[str] = (),
) -> DownstreamReport:
    """The report on trainings that are done; values of one patient are averaged over folds and seeds."""
    rng = np.random.default_rng(experiment.split.seed)
    names = [*experiment.structures, *([MEAN] if len(experiment.structures) > 1 else [])]
    rows = [row for name in names for row in _rows(name, experiment, len(split.folds), cells, rng)]
    few = len(split.test) < 6
    told = [f"{len(split.test)} patients test: no p-value can be below {2 / 2 ** len(split.test):.3f}"] if few else []
    return DownstreamReport(
        experiment=experiment,
        split=split,
        rows=tuple(rows),
        cells=tuple(cells),
        failures=tuple(failures),
        notes=(*notes, *told),
    )


def _rows(
    name: str, experiment: Experiment, num_folds: int, cells: Sequence[CellResult], rng: np.random.Generator
) -> Iterable[Row]:
    done = grouped(cells)
    order = {key: k for k, key in enumerate(_keys(experiment))}
    for key in sorted(done, key=lambda each: order.get(each, len(order))):
        of_key = [each for each in done[key] if _has(each, name)]
        if of_key:
            baseline = done.get((key[0], 0.0), []) if key[1] else []
            yield _row(name, key, num_folds, of_key, baseline, rng)


def grouped(cells: Iterable[CellResult]) -> Mapping[tuple[NumReal, float], list[CellResult]]:
    """The trainings of each number of real cases and each ratio."""
    found: dict[tuple[NumReal, float], list[CellResult]] = defaultdict(list)
    for each in cells:
        found[each.cell.num_real, each.cell.ratio].append(each)
    return found


def _keys(experiment: Experiment) -> list[tuple[NumReal, float]]:
    keys = [(n, r) for regime in experiment.regimes for n in regime.num_real for r in sorted(regime.ratios)]
    return sorted(dict.fromkeys(keys), key=lambda key: (key[0] == ALL, 0 if key[0] == ALL else int(key[0])))


def _has(result: CellResult, name: str) -> bool:
    return any(name == MEAN or name in case.classes for case in result.tested)


def _row(
    name: str,
    key: tuple[NumReal, float],
    num_folds: int,
    cells: Sequence[CellResult],
    baseline: Sequence[CellResult],
    rng: np.random.Generator,
) -> Row:
    by_fold = [[each for each in cells if each.cell.fold == fold] for fold in range(num_folds)]
    found = [each for cell in cells for case in cell.tested for each in _agreements(case.classes, name)]
    far = [each.hd95_mm for each in found if each.hd95_mm is not None]
    pairs = partners(cells, baseline)
    return Row(
        name=name,
        num_real=key[0],
        ratio=key[1],
        num_trained_real=float(np.mean([len(each.real) for each in cells])),
        num_synthetic=float(np.mean([len(each.synthetic) for each in cells])),
        seeds=len({each.cell.seed for each in cells}),
        folds=tuple(_mean(by_patient(each, name, dice_of)) if each else None for each in by_fold),
        dice=_mean(by_patient(cells, name, dice_of)),
        surface_dice=_mean(by_patient(cells, name, _surface_dice)),
        hd95_mm=float(np.mean(far)) if far else None,
        missed=sum(each.found_ml == 0 for each in found),
        tested=len(found),
        change=_change(*pairs, name, dice_of, rng) if pairs else None,
        surface_change=_change(*pairs, name, _surface_dice, rng) if pairs else None,
    )


def partners(
    cells: Sequence[CellResult], baseline: Sequence[CellResult]
) -> tuple[list[CellResult], list[CellResult]] | None:
    """The trainings of which both were done, with and without synthetic data; None where there is none."""
    without = {(each.cell.fold, each.cell.seed): each for each in baseline}
    both = [each for each in cells if (each.cell.fold, each.cell.seed) in without]
    return (both, [without[each.cell.fold, each.cell.seed] for each in both]) if both else None


def _change(
    cells: Sequence[CellResult],
    baseline: Sequence[CellResult],
    name: str,
    figure: Figure,
    rng: np.random.Generator,
) -> Difference:
    with_them, without = (by_patient(each, name, figure) for each in (cells, baseline))
    return paired_difference([with_them[patient] - without[patient] for patient in without], rng)


def by_patient(cells: Iterable[CellResult], name: str, figure: Figure) -> dict[str, float]:
    """A figure of each patient: the mean over trainings, scans and, of the mean, classes."""
    values: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        for case in cell.tested:
            found = [value for each in _agreements(case.classes, name) if (value := figure(each)) is not None]
            values[case.patient] += [float(np.mean(found))] if found else []
    return {patient: float(np.mean(each)) for patient, each in sorted(values.items()) if each}


def _agreements(classes: Mapping[str, Agreement], name: str) -> list[Agreement]:
    return list(classes.values()) if name == MEAN else [classes[name]] if name in classes else []


def dice_of(found: Agreement) -> float | None:
    """The Dice, as a figure of patients."""
    return found.dice


def _surface_dice(found: Agreement) -> float | None:
    return found.surface_dice or 0.0


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def told_rows(found: DownstreamReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table as text: a header, and its rows."""
    num = max((len(row.folds) for row in found.rows), default=0)
    header = ("", "real", "synthetic", *(f"fold {k}" for k in range(num)), "average", "change", "95 % interval", "p")
    return header, [
        (
            row.name,
            *row.counts,
            *("" if value is None else f"{value:.3f}" for value in row.folds),
            f"{row.dice:.3f}",
            *_told(row.change),
        )
        for row in found.rows
    ]


def _told(change: Difference | None) -> tuple[str, str, str]:
    if change is None:
        return "", "", ""
    return f"{change.mean:+.3f}", f"{change.low:+.3f} to {change.high:+.3f}", f"{change.p:.3f}"
