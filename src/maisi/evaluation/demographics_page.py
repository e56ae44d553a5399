"""The page of figures by group of patients."""

from collections.abc import Sequence
from html import escape

from maisi.evaluation.demographics import DemographicsReport, FigureByGroup
from maisi.evaluation.page import Bar, bars, page, table, told
from maisi.evaluation.representation import Representation

MOST_PLOTS = 8


def demographics_page(found: DemographicsReport) -> str:
    """Who is in the report, the gap of each figure, and all figures."""
    total = max(1, sum(share.manifest for share in found.groups.values()))
    reported = max(1, sum(share.report for share in found.groups.values()))
    shares = [
        (name, f"{each.manifest} ({each.manifest / total:.0%})", f"{each.report} ({each.report / reported:.0%})")
        for name, each in found.groups.items()
    ]
    clearest = [each for each in sorted(found.figures, key=_p) if any(g.mean for g in each.groups.values())][
        :MOST_PLOTS
    ]
    means = [(each.name, *(_mean(each, group) for group in found.groups)) for each in sorted(found.figures, key=_p)]
    parts = [
        f"<h1>{escape(found.report or 'Groups')} by {escape(found.by)}</h1>",
        f"<p class='faint'>Intervals: 95 %, over patients, of gaps for all pairs of groups at once. Of groups of fewer "
        f"than {found.least} patients nothing is said. p: how often chance alone makes a gap as large (permutation)."
        "</p>",
        "<h2>Groups</h2>",
        table((found.by, "cases of the manifest", "of the report"), shares),
        *_representation(found),
        *_figures(found, means),
        *(part for each in clearest for part in _plot(each)),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
    ]
    return page(f"By {found.by}", parts)


def _figures(found: DemographicsReport, means: Sequence[tuple[str, ...]]) -> list[str]:
    if not found.figures:
        return []
    return [
        "<h2>Gaps</h2>",
        table(("", "worst", "best", "gap", "p", "verdict"), gap_rows(found)),
        "<h2>Means</h2>",
        table(("", *found.groups), means),
    ]


def _representation(found: DemographicsReport) -> list[str]:
    conditions = found.conditions
    told = [] if conditions is None else [f"<p>The bundle can be asked for: {escape(', '.join(conditions))}.</p>"]
    if found.representation is None:
        return told
    each = found.representation
    shares: list[Bar] = []
    for name, group in each.groups.items():
        shares += [(name, group.share, group.low, group.high), ("asked", group.asked, group.asked, group.asked)]
    return [
        f"<h2>What was generated against what was asked: {each.verdict} (p {escape(told_p(each.p))})</h2>",
        f"<p class='faint'>Asked by {escape(each.asked_by)}. Patients count, not volumes.</p>",
        bars(shares),
        table((found.by, "patients", "share", "asked"), representation_rows(each)),
        *told,
    ]


def told_p(p: float) -> str:
    """A probability to three places, none as 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def representation_rows(found: Representation) -> list[tuple[str, ...]]:
    """The patients and the share of each group, with its interval, and what was asked."""
    return [
        (name, str(g.patients), f"{g.share:.0%} ({g.low:.0%} to {g.high:.0%})", f"{g.asked:.0%}")
        for name, g in found.groups.items()
    ]


def _plot(figure: FigureByGroup) -> list[str]:
    told_groups = [(name, each.mean) for name, each in figure.groups.items() if each.mean is not None]
    return [
        f"<h2>{escape(figure.name)}</h2>",
        bars([(name, mean.mean, mean.low, mean.high) for name, mean in told_groups]),
    ]


def _p(figure: FigureByGroup) -> float:
    return 1.0 if figure.gap is None else figure.gap.p


def gap_rows(found: DemographicsReport) -> list[tuple[str, ...]]:
    """Worst and best group of each figure, the gap with its interval, p and verdict; the clearest first."""
    rows: list[tuple[str, ...]] = []
    for each in sorted(found.figures, key=_p):
        gap = each.gap
        told_gap = ("", "", "", "")
        if gap is not None:
            interval = f"{gap.difference:+.3g} ({gap.low:.3g} to {gap.high:.3g})"
            told_gap = (gap.worst or "none", gap.best or "none", interval, told_p(gap.p))
        rows.append((each.name, *told_gap, each.verdict))
    return rows


def _mean(figure: FigureByGroup, group: str) -> str:
    if group not in figure.groups:
        return ""
    found = figure.groups[group]
    return f"too few ({found.patients})" if found.mean is None else told(found.mean)
