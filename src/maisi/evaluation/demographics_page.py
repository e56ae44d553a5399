"""The page of figures by group of patients."""

from html import escape

from maisi.evaluation.demographics import DemographicsReport, FigureByGroup
from maisi.evaluation.page import page, table, told


def demographics_page(found: DemographicsReport) -> str:
    """Who is in the report, the gap of each figure, and all figures."""
    total = max(1, sum(share.manifest for share in found.groups.values()))
    reported = max(1, sum(share.report for share in found.groups.values()))
    shares = [
        (name, f"{each.manifest} ({each.manifest / total:.0%})", f"{each.report} ({each.report / reported:.0%})")
        for name, each in found.groups.items()
    ]
    means = [
        (each.name, *(_mean(each, group) for group in found.groups))
        for each in sorted(found.figures, key=lambda each: 1.0 if each.gap is None else each.gap.p)
    ]
    parts = [
        f"<h1>{escape(found.report)} by {escape(found.by)}</h1>",
        f"<p class='faint'>Intervals: 95 %, over patients. Of groups of fewer than {found.least} patients nothing is "
        "said. p: how often chance alone makes a gap as large (permutation).</p>",
        "<h2>Groups</h2>",
        table((found.by, "cases of the manifest", "of the report"), shares),
        "<h2>Gaps</h2>",
        table(("", "worst", "best", "gap", "p", "verdict"), gap_rows(found)),
        "<h2>Means</h2>",
        table(("", *found.groups), means),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
    ]
    return page(f"By {found.by}", parts)


def gap_rows(found: DemographicsReport) -> list[tuple[str, ...]]:
    """Worst and best group of each figure, the gap with its interval, p and verdict; the clearest first."""
    rows: list[tuple[str, ...]] = []
    for each in sorted(found.figures, key=lambda each: 1.0 if each.gap is None else each.gap.p):
        gap = each.gap
        told_gap = ("", "", "", "")
        if gap is not None:
            told_gap = (gap.worst, gap.best, f"{gap.difference:+.3g} ({gap.low:.3g} to {gap.high:.3g})", f"{gap.p:.3f}")
        rows.append((each.name, *told_gap, each.verdict))
    return rows


def _mean(figure: FigureByGroup, group: str) -> str:
    if group not in figure.groups:
        return ""
    found = figure.groups[group]
    return f"too few ({found.patients})" if found.mean is None else told(found.mean)
