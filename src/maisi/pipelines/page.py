"""Pages that open without a network: tables, figures and pictures in one file of HTML."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

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


def page(title: str, parts: Iterable[str]) -> str:
    """A page of parts in HTML; empty ones are left out."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], mark: str = "") -> str:
    """A table under its title, with the number of rows; nothing where there are none."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h2 class="{mark}">{title} ({len(lines)})</h2><table><tr>{head}</tr>{body}</table>'


def number(value: float) -> str:
    """A number of three digits, written out."""
    return f"{float(f'{value:.3g}'):g}"


def histogram(title: str, values: Sequence[float]) -> str:
    """How often values lie in each of a few bins; nothing without values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    width = (high - low) / _BINS or 1.0
    counts = Counter(min(_BINS - 1, int((value - low) / width)) for value in values)
    bins = range(_BINS if high > low else 1)
    return bars(title, [(number(low + k * width), counts[k]) for k in bins], every=_BINS // 2)


def bars(title: str, columns: Sequence[tuple[str, int]], every: int = 1) -> str:
    """A bar a count, its name below every so many, the greatest count beside the axis."""
    most = max((count for _, count in columns), default=0) or 1
    width, height = 240, 110
    step = (width - 40) / len(columns)
    drawn = []
    for k, (name, count) in enumerate(columns):
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


def pictures(files: Sequence[tuple[str, Path]], most: int, title: str = "Pictures") -> str:
    """Pictures with their captions, spread evenly over all where there are more than a page takes."""
    step = max(1, -(-len(files) // most))
    figures = [
        f'<figure><img loading="lazy" alt="three planes of {escape(name)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, path in files[::step]
        if (data := _encoded(path))
    ]
    some = f"every {step}th of {len(files)}" if step > 1 else "all"
    return f'<h2>{escape(title)} ({some})</h2><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _encoded(path: Path) -> str:
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((_PICTURE_WIDTH, _PICTURE_WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
