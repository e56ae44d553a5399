"""The page of an experiment: tables, changes with their intervals, and the patients, in one file."""

from collections.abc import Sequence
from html import escape

import yaml

from maisi.downstream.report import MEAN, DownstreamReport, Row, by_patient, told_rows
from maisi.evaluation.page import forest, page, table

_SIZE, _EDGE = 300, 40


def downstream_page(found: DownstreamReport) -> str:
    """The page of a report."""
    experiment, header_and_rows = found.experiment, told_rows(found)
    changed = [row for row in found.rows if row.change is not None]
    names = list(dict.fromkeys(row.name for row in found.rows))
    parts = [
        f"<h1>{escape(experiment.name)}: does synthetic data help?</h1>",
        f"<p class='faint'>Backend {experiment.training.backend}, synthetic data: {experiment.synthetic.source}, "
        f"{len(found.split.test)} patients test, {len(found.split.folds)} folds of the others. Change: Dice less that "
        "of real data only. Intervals: 95 %, paired bootstrap over patients, whose values are averaged over folds and "
        "seeds; p: random signs, two-sided, not corrected for the number of comparisons.</p>",
        "<h2>Change of Dice</h2>",
        _forest(changed) if changed else "<p>Nothing to compare yet.</p>",
        "<h2>Dice, fold by fold</h2>",
        table(*header_and_rows),
        "<h2>Surfaces</h2>",
        table(*_surfaces(found)),
        "<h2>Patients: real data only against real and synthetic data</h2>",
        *(_scatter(found, name) for name in names[-1:]),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
        *(f"<p>Failed: {each.cell.name}: {escape(each.words)}.</p>" for each in found.failures),
        "<h2>To repeat it</h2>",
        f"<pre>{escape(yaml.safe_dump(experiment.model_dump(mode='json'), sort_keys=False))}</pre>",
    ]
    return page(experiment.name, parts)


def _forest(rows: Sequence[Row]) -> str:
    bars = [
        (f"{row.name}, {row.num_trained_real:g} + {row.num_synthetic:g}", c.mean, c.low, c.high)
        for row in rows
        if (c := row.change) is not None
    ]
    return forest(bars, 0.0) if any(low or high for _, _, low, high in bars) else "<p>No change anywhere.</p>"


def _surfaces(found: DownstreamReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    tolerance = found.experiment.tolerance_mm
    header = ("", "real", "synthetic", f"surface Dice, {tolerance:g} mm", "change", "p", "HD95 mm", "missed")
    return header, [
        (
            row.name,
            f"{row.num_trained_real:g}",
            f"{row.num_synthetic:g}",
            f"{row.surface_dice:.3f}",
            "" if row.surface_change is None else f"{row.surface_change.mean:+.3f}",
            "" if row.surface_change is None else f"{row.surface_change.p:.3f}",
            "" if row.hd95_mm is None else f"{row.hd95_mm:.1f}",
            f"{row.missed} of {row.tested}",
        )
        for row in found.rows
    ]


def _scatter(found: DownstreamReport, name: str) -> str:
    """A square for each comparison, a point for each patient; above the line synthetic data helped."""
    squares = []
    for row in found.rows:
        if row.name != name or row.change is None:
            continue
        without, with_them = (
            by_patient(
                [c for c in found.cells if c.cell.num_real == row.num_real and c.cell.ratio == ratio],
                name,
                lambda each: each.dice,
            )
            for ratio in (0, row.ratio)
        )
        points = [(without[p], with_them[p]) for p in without if p in with_them]
        squares.append(_square(f"{row.num_trained_real:g} real + {row.num_synthetic:g}", points))
    what = "" if name != MEAN else " (mean over classes)"
    return f"<p>Dice{what} of each patient, from 0 to 1; upwards: with synthetic data.</p>{''.join(squares)}"


def _square(title: str, points: Sequence[tuple[float, float]]) -> str:
    span = _SIZE - _EDGE
    dots = "".join(
        f"<circle cx='{_EDGE + span * x:.1f}' cy='{span * (1 - y):.1f}' r='4' opacity='.8'/>" for x, y in points
    )
    return (
        f"<svg viewBox='-6 -6 {_SIZE + 12} {_SIZE + 12}' width='{_SIZE}' height='{_SIZE}'>"
        f"<line x1='{_EDGE}' y1='{span}' x2='{_SIZE}' y2='0' stroke-dasharray='3 3'/>"
        f"<line x1='{_EDGE}' y1='{span}' x2='{_SIZE}' y2='{span}'/>"
        f"<line x1='{_EDGE}' y1='0' x2='{_EDGE}' y2='{span}'/>{dots}"
        f"<text x='{_EDGE}' y='{_SIZE - 10}'>{escape(title)}</text></svg>"
    )
