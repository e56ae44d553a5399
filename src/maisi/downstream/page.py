"""The page of an experiment: tables, changes with their intervals, and the patients, in one file."""

from collections.abc import Sequence
from html import escape

import yaml

from maisi.downstream.report import MEAN, DownstreamReport, Row, by_patient, dice_of, grouped, partners, told_rows
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
        *(_curves(found, name) for name in names[-1:]),
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
        (f"{row.name}, {' + '.join(row.counts)}", c.mean, c.low, c.high)
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
            *row.counts,
            f"{row.surface_dice:.3f}",
            "" if row.surface_change is None else f"{row.surface_change.mean:+.3f}",
            "" if row.surface_change is None else f"{row.surface_change.p:.3f}",
            "" if row.hd95_mm is None else f"{row.hd95_mm:.1f}",
            f"{row.missed} of {row.tested}",
        )
        for row in found.rows
    ]


def _curves(found: DownstreamReport, name: str) -> str:
    """Dice against the number of real cases, a line for each ratio; nothing where that number is one."""
    rows = [row for row in found.rows if row.name == name]
    most = max((row.num_trained_real for row in rows), default=1.0)
    if len({row.num_real for row in rows}) < 2:
        return ""
    span, shapes = _SIZE - _EDGE, []
    for row in rows:
        shapes.append(_line_to(row, rows, most, span))
    ratios = ", ".join(f"{ratio:g}" for ratio in sorted({row.ratio for row in rows}))
    title = f"Dice from 0 to 1 by real cases, to {most:.3g}"
    told = f"<p>Lines: synthetic cases for each real one ({ratios}); the darker, the more.</p>"
    return f"<h2>Fewer real cases</h2>{told}{_frame(title, ''.join(shapes))}"


def _line_to(row: Row, rows: Sequence[Row], most: float, span: int) -> str:
    """The point of a row and the line to that of the next number of real cases with the same ratio."""
    strongest = max(each.ratio for each in rows) or 1.0
    opacity = 0.35 + 0.65 * row.ratio / strongest
    x, y = _EDGE + span * row.num_trained_real / most, span * (1 - row.dice)
    dot = f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' opacity='{opacity:.2f}'/>"
    more = [each for each in rows if each.ratio == row.ratio and each.num_trained_real > row.num_trained_real]
    if not more:
        return dot
    after = min(more, key=lambda each: each.num_trained_real)
    x2, y2 = _EDGE + span * after.num_trained_real / most, span * (1 - after.dice)
    return f"{dot}<line x1='{x:.1f}' y1='{y:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' opacity='{opacity:.2f}'/>"


def _scatter(found: DownstreamReport, name: str) -> str:
    """A square for each comparison, a point for each patient; above the line synthetic data helped.

    Points are of the trainings that the change is of.
    """
    squares, done = [], grouped(found.cells)
    for row in found.rows:
        pairs = partners(done[row.num_real, row.ratio], done[row.num_real, 0.0]) if row.change is not None else None
        if row.name != name or pairs is None:
            continue
        with_them, without = (by_patient(cells, name, dice_of) for cells in pairs)
        points = [(without[p], with_them[p]) for p in without if p in with_them]
        squares.append(_square(f"{row.counts[0]} real + {row.counts[1]}", points))
    what = "" if name != MEAN else " (mean over classes)"
    return f"<p>Dice{what} of each patient, from 0 to 1; upwards: with synthetic data.</p>{''.join(squares)}"


def _square(title: str, points: Sequence[tuple[float, float]]) -> str:
    span = _SIZE - _EDGE
    dots = "".join(
        f"<circle cx='{_EDGE + span * x:.1f}' cy='{span * (1 - y):.1f}' r='4' opacity='.8'/>" for x, y in points
    )
    return _frame(title, f"<line x1='{_EDGE}' y1='{span}' x2='{_SIZE}' y2='0' stroke-dasharray='3 3'/>{dots}")


def _frame(title: str, shapes: str) -> str:
    """Two axes with a title below."""
    span = _SIZE - _EDGE
    return (
        f"<svg viewBox='-6 -6 {_SIZE + 12} {_SIZE + 12}' width='{_SIZE}' height='{_SIZE}'>"
        f"<line x1='{_EDGE}' y1='{span}' x2='{_SIZE}' y2='{span}'/>"
        f"<line x1='{_EDGE}' y1='0' x2='{_EDGE}' y2='{span}'/>{shapes}"
        f"<text x='{_EDGE}' y='{_SIZE - 10}'>{escape(title)}</text></svg>"
    )
