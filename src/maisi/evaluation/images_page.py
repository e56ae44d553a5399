"""The page of two sets of volumes."""

from html import escape

from maisi.evaluation.features import PLANES
from maisi.evaluation.images import ImageReport, Interval, SetDistance, SetFacts
from maisi.evaluation.page import bars, page, table
from maisi.shapes import in_words

ROWS = (
    ("synthetic against real", "synthetic"),
    ("the same, as many as a half has", "matched"),
    ("halves of the real ones", "halves"),
)


def images_page(found: ImageReport) -> str:
    """Distances beside those of halves, by orientation, precision and recall, and what the sets are made of."""
    rows = [(words, getattr(found, name)) for words, name in ROWS]
    sets = (("real", found.real), ("synthetic", found.synthetic_set))
    parts = [
        f"<h1>{found.synthetic_set.volumes} synthetic volumes against {found.real.volumes} real ones</h1>",
        f"<p class='faint'>Features: {escape(found.features)} ({found.num_features}). {_protocol(found)} Intervals: "
        "95 %, over volumes; of the last two rows: the range over ten divisions of the real patients.</p>",
        "<h2>Frechet distance</h2>",
        bars([_bar(words, each.frechet_mean) for words, each in rows]),
        table(("", *PLANES, "mean"), [(words, *_frechet(each)) for words, each in rows]),
        "<h2>Kernel distance</h2>",
        bars([_bar(words, each.kernel) for words, each in rows]),
        "<h2>Precision and recall</h2>",
        bars(
            [_bar(f"{what}, {words}", getattr(each, what)) for what in ("precision", "recall") for words, each in rows]
        ),
        table(
            ("", "kernel distance", "precision", "recall"),
            [(words, told(each.kernel, 4), told(each.precision, 2), told(each.recall, 2)) for words, each in rows],
        ),
        "<h2>Sets</h2>",
        table(("", "volumes", "planes", "spacings mm", "field of view mm"), [_set(name, each) for name, each in sets]),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
    ]
    return page("Images", parts)


def told(interval: Interval, digits: int = 3) -> str:
    """A number with its interval."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _protocol(found: ImageReport) -> str:
    each = found.protocol
    share = "" if each.centre == 1 else f" of the middle {each.centre:.0%}"
    every = "every plane" if each.every == 1 else f"one plane in {each.every}"
    return (
        f"Protocol {escape(found.protocol_name)}: {every}{share} in three orientations at {each.spacing_mm:g} mm, "
        f"{each.size} pixels."
    )


def _bar(words: str, interval: Interval) -> tuple[str, float, float, float]:
    return words, interval.value, interval.low, interval.high


def _frechet(found: SetDistance) -> tuple[str, ...]:
    return (*(f"{found.frechet[name]:.3f}" for name in PLANES), told(found.frechet_mean))


def _set(name: str, facts: SetFacts) -> tuple[str, ...]:
    planes = ", ".join(f"{count} {orientation}" for orientation, count in facts.planes.items())
    spacings = "; ".join(map(in_words, facts.spacings_mm[:6]))
    fov = " to ".join(map(in_words, (facts.least_fov_mm, facts.most_fov_mm)))
    return name, str(facts.volumes), planes, spacings, fov
