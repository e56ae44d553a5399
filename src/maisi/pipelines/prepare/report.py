"""The report of a store: one page with pictures and figures that opens without a network."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from maisi.anatomy.regions import BodyRegion
from maisi.pipelines.prepare.case import CASES, PICTURE, CaseFacts
from maisi.pipelines.prepare.store import SPLITS, StoreContent
from maisi.storage.atomic import write_atomically

REPORT = "report.html"
MOST_PICTURES = 60
_PICTURE_WIDTH = 520  # pixels
_BINS = 12

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #66707e; --paper: #fff; --line: #d8dde4; --bar: #3f7fb5;
  --bad: #b3352a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --faint: #9aa5b3; --paper: #14181e; --line: #323a45;
  --bar: #6ea8dc; --bad: #ff8a7a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .7rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: break-word }
th, td:first-child { white-space: nowrap }
td.n, th.n { text-align: right } .faint { color: var(--faint) } .bad { color: var(--bad) }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem } figure { margin: 0 } figcaption { font-size: 13px;
  color: var(--faint) } svg text { fill: var(--faint); font: 11px system-ui, sans-serif } rect { fill: var(--bar) }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
.pictures img { width: 100%; border-radius: 4px }
"""


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
        _table("Groups", ("group", *SPLITS, "with labels"), _groups(content)),
        "<h2>Scans as they came</h2>",
        f'<div class="figures">{_figures(content)}</div>',
        _table(
            "Refused", ("case", "file", "why"), ((e.id, e.image, e.refused or "") for e in content.refused), mark="bad"
        ),
        _table("Warnings", ("case", "what", "decided"), (row for each in warned for row in _warnings(each))),
        _table("Notes", ("case", "note"), ((e.id, "; ".join(e.notes)) for e in content.facts.values() if e.notes)),
        _table("Passed over", ("file", "why"), ((str(p.path), p.why) for p in content.passed_over)),
        _table("Cases", _COLUMNS, (_row(content.facts[case.id], case.split) for case in content.cases)),
        _pictures(store, content),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Prepared cases</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


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
        _times(facts.shape or ()),
        _times(facts.spacing_mm or ()),
        _times(case.shape or ()),
        _times(case.spacing_mm or ()),
        f"{span} (by {facts.span_from})",
        str(len(case.labels_present)),
    )


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _warnings(facts: CaseFacts) -> list[tuple[str, str, str]]:
    return [(facts.id, finding.found, finding.decided) for finding in facts.findings if finding.is_warning]


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], mark: str = "") -> str:
    """A table under its title, with the number of rows; nothing where there are none."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h2 class="{mark}">{title} ({len(lines)})</h2><table><tr>{head}</tr>{body}</table>'


# Figures --------------------------------------------------------------------------------------------------------------


def _figures(content: StoreContent) -> str:
    """The distributions of the paper's Figure S1, and of field of view and body region."""
    facts = [each for each in content.facts.values() if each.shape is not None and each.spacing_mm is not None]

    def of(take: Callable[[CaseFacts], float]) -> list[float]:
        return [take(each) for each in facts]

    shapes = [(each.shape, each.spacing_mm) for each in facts if each.shape and each.spacing_mm]
    figures = [
        _histogram("voxels in x and y", [float(shape[0]) for shape, _ in shapes]),
        _histogram("voxels in z", [float(shape[2]) for shape, _ in shapes]),
        _histogram("spacing in x and y, mm", [spacing[0] for _, spacing in shapes]),
        _histogram("spacing in z, mm", [spacing[2] for _, spacing in shapes]),
        _histogram("field of view in x, mm", [shape[0] * spacing[0] for shape, spacing in shapes]),
        _histogram("field of view in z, mm", [shape[2] * spacing[2] for shape, spacing in shapes]),
    ]
    shown: Counter[str] = Counter()
    for case in content.cases:
        names = [region.name.lower() for region in BodyRegion]
        if case.span is not None:
            shown.update(names[names.index(case.span[0]) : names.index(case.span[1]) + 1])
    regions = [(region.name.lower(), shown[region.name.lower()]) for region in BodyRegion]
    return "".join([*figures, _bars("cases that show", regions)])


def _histogram(title: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    width = (high - low) / _BINS or 1.0
    counts = Counter(min(_BINS - 1, int((value - low) / width)) for value in values)
    bins = range(_BINS if high > low else 1)
    return _bars(title, [(f"{low + k * width:.3g}", counts[k]) for k in bins], every=_BINS // 2)


def _bars(title: str, bars: Sequence[tuple[str, int]], every: int = 1) -> str:
    """A bar a count, its name below every so many, the greatest count beside the axis."""
    most = max((count for _, count in bars), default=0) or 1
    width, height = 240, 110
    step = (width - 40) / len(bars)
    drawn = []
    for k, (name, count) in enumerate(bars):
        tall = 80 * count / most
        x = 36 + k * step
        drawn.append(
            f'<rect x="{x:.1f}" y="{90 - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">'
            f"<title>{escape(name)}: {count}</title></rect>"
        )
        if k % every == 0:
            place = f'x="{x:.1f}"' if every > 1 else f'x="{x + step / 2 - 1:.1f}" text-anchor="middle"'
            drawn.append(f'<text {place} y="104">{escape(name)}</text>')
    drawn.append(f'<text x="30" y="18" text-anchor="end">{most}</text><text x="30" y="90" text-anchor="end">0</text>')
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg><figcaption>{escape(title)}</figcaption></figure>'
    )


def _pictures(store: Path, content: StoreContent) -> str:
    """Pictures of cases, spread evenly over all where there are too many for a page."""
    step = max(1, -(-len(content.cases) // MOST_PICTURES))
    shown = content.cases[::step]
    figures = [
        f'<figure><img loading="lazy" alt="three planes of {escape(case.id)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(case.id)}</figcaption></figure>"
        for case in shown
        if (data := _encoded(store / CASES / case.id / PICTURE))
    ]
    some = f"every {step}th of {len(content.cases)}" if step > 1 else "all"
    return f'<h2>Pictures ({some})</h2><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _encoded(path: Path) -> str:
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((_PICTURE_WIDTH, _PICTURE_WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
