"""The report of a store: one page with pictures and figures that opens without a network."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from maisi.anatomy.regions import BodyRegion
from maisi.pipelines.page import bars, histogram, page, pictures, table
from maisi.pipelines.prepare.case import CASES, PICTURE, CaseFacts
from maisi.pipelines.prepare.store import SPLITS, StoreContent
from maisi.shapes import in_words
from maisi.storage.atomic import write_atomically

REPORT = "report.html"
MOST_PICTURES = 60


def write_report(store: Path, content: StoreContent) -> Path:
    """Write the page of a store and give its path; the same content gives the same bytes."""
    path = store / REPORT
    with write_atomically(path) as temporary:
        temporary.write_text(_page(store, content), encoding="utf-8")
    return path


def _page(store: Path, content: StoreContent) -> str:
    warned = [each for each in content.facts.values() if _warnings(each)]
    parts = [
        f"<h1>{len(content.cases)} prepared cases</h1>",
        f"<p>{_summary(content)}</p>",
        table("Groups", ("group", *SPLITS, "with labels"), _groups(content)),
        "<h2>Scans as they came</h2>",
        f'<div class="figures">{_figures(content)}</div>',
        table(
            "Refused", ("case", "file", "why"), ((e.id, e.image, e.refused or "") for e in content.refused), mark="bad"
        ),
        table("Warnings", ("case", "what", "decided"), (row for each in warned for row in _warnings(each))),
        table("Notes", ("case", "note"), ((e.id, "; ".join(e.notes)) for e in content.facts.values() if e.notes)),
        table("Passed over", ("file", "why"), ((str(p.path), p.why) for p in content.passed_over)),
        table("Cases", _COLUMNS, (_row(content.facts[case.id], case.split) for case in content.cases)),
        pictures([(case.id, store / CASES / case.id / PICTURE) for case in content.cases], MOST_PICTURES),
    ]
    return page("Prepared cases", parts)


def _summary(content: StoreContent) -> str:
    patients = len({each.patient for each in content.facts.values()})
    splits = ", ".join(f"{content.count(split)} {split}" for split in SPLITS if content.count(split))
    labelled = sum(case.labels_maisi is not None for case in content.cases)
    told = Counter(each.span_from for each in content.facts.values())
    spans = ", ".join(f"{count} by {name}" for name, count in sorted(told.items()))
    bad = f'<span class="bad">{len(content.refused)} refused</span>' if content.refused else "none refused"
    return (
        f"{patients} patients; {splits or 'no split'}; {labelled} with labels; body region {spans or 'unknown'}; {bad}."
    )


def _groups(content: StoreContent) -> Iterable[tuple[str, ...]]:
    for group in sorted({case.group for case in content.cases}):
        cases = [case for case in content.cases if case.group == group]
        counts = [str(sum(case.split == split for case in cases)) for split in SPLITS]
        yield (group, *counts, str(sum(case.labels_maisi is not None for case in cases)))


_COLUMNS = ("case", "split", "as scanned", "mm", "prepared", "mm", "shows", "structures")


def _row(facts: CaseFacts, split: str) -> tuple[str, ...]:
    case = facts.case
    assert case is not None
    span = " to ".join(dict.fromkeys(case.span or ()))
    return (
        facts.id,
        split,
        in_words(facts.shape or (), 4),
        in_words(facts.spacing_mm or (), 4),
        in_words(case.shape or (), 4),
        in_words(case.spacing_mm or (), 4),
        f"{span} (by {facts.span_from})",
        str(len(case.labels_present)),
    )


def _warnings(facts: CaseFacts) -> list[tuple[str, str, str]]:
    return [(facts.id, finding.found, finding.decided) for finding in facts.findings if finding.is_warning]


# Figures --------------------------------------------------------------------------------------------------------------


def _figures(content: StoreContent) -> str:
    """The distributions of the paper's Figure S1, and of field of view and body region."""
    facts = [each for each in content.facts.values() if each.shape is not None and each.spacing_mm is not None]

    def of(take: Callable[[CaseFacts], float]) -> list[float]:
        return [take(each) for each in facts]

    shapes = [(each.shape, each.spacing_mm) for each in facts if each.shape and each.spacing_mm]
    figures = [
        histogram("voxels in x and y", [float(shape[0]) for shape, _ in shapes]),
        histogram("voxels in z", [float(shape[2]) for shape, _ in shapes]),
        histogram("spacing in x and y, mm", [spacing[0] for _, spacing in shapes]),
        histogram("spacing in z, mm", [spacing[2] for _, spacing in shapes]),
        histogram("field of view in x, mm", [shape[0] * spacing[0] for shape, spacing in shapes]),
        histogram("field of view in z, mm", [shape[2] * spacing[2] for shape, spacing in shapes]),
    ]
    shown: Counter[str] = Counter()
    for case in content.cases:
        names = [region.name.lower() for region in BodyRegion]
        if case.span is not None:
            shown.update(names[names.index(case.span[0]) : names.index(case.span[1]) + 1])
    regions = [(region.name.lower(), shown[region.name.lower()]) for region in BodyRegion]
    return "".join([*figures, bars("cases that show", regions)])
