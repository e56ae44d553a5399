"""Pages of evaluation: tables and plots that open without a network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from maisi.evaluation.segmentation import Interval

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #66707e; --paper: #fff; --line: #d8dde4; --bar: #3f7fb5 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --faint: #9aa5b3; --paper: #14181e; --line: #323a45;
  --bar: #6ea8dc } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .3rem 1.2rem .3rem 0;
  border-bottom: 1px solid var(--line) } .faint { color: var(--faint) }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } rect { fill: var(--bar) } line { stroke: var(--ink) }
circle { fill: var(--bar) }
"""
_PLOT, _ROW, _LEAST_LEFT, _LETTER = 450, 34, 190, 7
"""Pixels: of the plot beside the names, of a row, of the names at least, and of a letter of theirs."""


def page(title: str, parts: Iterable[str]) -> str:
    """A page that needs no network."""
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
    head = f"<meta charset='utf-8'>{policy}<title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def told(mean: Interval, digits: int = 3) -> str:
    """A mean with its interval."""
    return f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under a header."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


Bar = tuple[str, float, float, float]
"""What a bar is of, the value, and the ends of its interval."""


def bars(rows: Sequence[Bar]) -> str:
    """A bar a row, from 0, with its interval as a line; nothing without rows."""
    if not rows:
        return ""
    most = max(max(value, high) for _, value, _, high in rows) or 1.0
    left, scale, shapes = _left(rows), (_PLOT - 20) / most, []
    for k, (name, *numbers) in enumerate(rows):
        y = k * _ROW
        x = [left + scale * max(0.0, number) for number in numbers]
        shapes += [
            f"<text x='0' y='{y + 21}'>{escape(name)}</text>",
            f"<rect x='{left}' y='{y + 8}' width='{x[0] - left:.1f}' height='18' opacity='.6'/>",
            f"<line x1='{x[1]:.1f}' x2='{x[2]:.1f}' y1='{y + 17}' y2='{y + 17}' stroke-width='2'/>",
        ]
    return _drawing(shapes, left, len(rows))


def forest(rows: Sequence[Bar], margin: float) -> str:
    """A point with its interval a row, beside 0 and the band of a margin around it, with their numbers below."""
    most = max(margin, *(max(abs(low), abs(high)) for _, _, low, high in rows)) * 1.1
    left, height = _left(rows), len(rows) * _ROW
    middle, scale = left + _PLOT / 2, (_PLOT - 20) / 2 / most
    band = scale * margin
    marks = [-margin, 0.0, margin] if margin else [-most / 1.1, 0.0, most / 1.1]
    shapes = [
        f"<rect x='{middle - band:.1f}' y='0' width='{2 * band:.1f}' height='{height}' opacity='.2'/>",
        *(f"<text x='{middle + scale * m:.1f}' y='{height + 20}' text-anchor='middle'>{m:+.2g}</text>" for m in marks),
        f"<line x1='{middle:.1f}' x2='{middle:.1f}' y1='0' y2='{height}' stroke-dasharray='3 3'/>",
    ]
    for k, (name, *numbers) in enumerate(rows):
        y, x = k * _ROW + 17, [middle + scale * number for number in numbers]
        shapes += [
            f"<text x='0' y='{y + 4}'>{escape(name)}</text>",
            f"<line x1='{x[1]:.1f}' x2='{x[2]:.1f}' y1='{y}' y2='{y}' stroke-width='2'/>",
            f"<circle cx='{x[0]:.1f}' cy='{y}' r='4'/>",
        ]
    return _drawing(shapes, left, len(rows) + 1)


def strip(rows: Sequence[tuple[str, Sequence[float]]], marks: Sequence[tuple[str, float]]) -> str:
    """A point for each value of a row, from 0, and lines with a name across all rows."""
    most = max([value for _, values in rows for value in values] + [place for _, place in marks]) * 1.05 or 1.0
    left, scale, shapes = _left(rows), (_PLOT - 20) / most, []
    for k, (name, place) in enumerate(marks):
        x = left + scale * place
        shapes += [
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{len(rows) * _ROW}' stroke-dasharray='3 3'/>",
            f"<text x='{x + 4:.1f}' y='{(len(rows) + k) * _ROW + 20}'>{escape(name)} ({place:.3g})</text>",
        ]
    for k, (name, values) in enumerate(rows):
        y = k * _ROW + 17
        shapes.append(f"<text x='0' y='{y + 4}'>{escape(name)}</text>")
        shapes += [f"<circle cx='{left + scale * v:.1f}' cy='{y}' r='4' opacity='.6'/>" for v in values]
    return _drawing(shapes, left, len(rows) + len(marks))


def picture(png: bytes, words: str) -> str:
    """A picture within the page."""
    data = base64.b64encode(png).decode("ascii")
    return f"<figure><img alt='{escape(words)}' src='data:image/png;base64,{data}' style='max-width: 100%'></figure>"


def _left(rows: Sequence[tuple[str, *tuple[Any, ...]]]) -> int:
    """Where the plot begins: right of the longest name."""
    return max(_LEAST_LEFT, 12 + max(_LETTER * len(name) for name, *_ in rows))


def _drawing(shapes: Iterable[str], left: int, num_rows: int) -> str:
    width, height = left + _PLOT, num_rows * _ROW
    return f"<svg viewBox='0 0 {width} {height}' width='{width}' height='{height}'>{''.join(shapes)}</svg>"
