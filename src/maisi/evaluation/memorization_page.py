"""The page of nearest training volumes and label maps."""

from collections.abc import Mapping, Sequence
from html import escape

from maisi.evaluation.memorization import MemorizationReport
from maisi.evaluation.neighbours import COPY_SHARE, Neighbours
from maisi.evaluation.page import page, picture, strip, table

MOST_ROWS = 50


def memorization_page(found: MemorizationReport, pictures: Mapping[str, Sequence[bytes]]) -> str:
    """How near each generated volume and label map is beside held-out ones, and pictures (PNG) of the nearest pairs."""
    parts = [
        f"<h1>{len(found.copies)} copies of training data</h1>",
        "<p class='faint'>Volumes: one less the correlation of anatomy between 8 and 32 mm at the best shift, mirrored "
        f"or not; features: {escape(found.features)}. Label maps: one less the mean Dice of their structures, once "
        f"shift and scale were taken out, mirrored or not; features: volumes of structures. A copy is nearer than "
        f"{COPY_SHARE:g} of the least distance of anything held out.</p>",
    ]
    for name, each in (("images", found.images), ("labels", found.labels)):
        if each is not None:
            parts += _part({"images": "Volumes", "labels": "Label maps"}[name], each, pictures.get(name, ()))
    return page("Copies", parts)


def _part(title: str, found: Neighbours, pictures: Sequence[bytes]) -> list[str]:
    rows = [("generated", [each.distance for each in found.generated])]
    rows.append(("held out", [each.distance for each in found.held_out]))
    return [
        f"<h2>{title}: {len(found.generated)} generated, {found.num_training} of training, "
        f"{len(found.held_out)} held out</h2>",
        f"<p>{found.close} generated ones are nearer than everything held out; {found.expected_close:.1f} would be by "
        "chance.</p>",
        strip(rows, (("copy", COPY_SHARE * found.least), ("close", found.least))),
        table(
            ("generated", "nearest of training", "apart", "mirrored", "nearest by features", ""), neighbour_rows(found)
        ),
        *(picture(png, f"pair {k}") for k, png in enumerate(pictures)),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
    ]


def neighbour_rows(found: Neighbours, most: int = MOST_ROWS) -> list[tuple[str, ...]]:
    """The nearest pairs in words."""
    return [
        (
            each.name,
            each.nearest,
            f"{each.distance:.3f}",
            "yes" if each.mirrored else "",
            each.nearest_by_features,
            "copy" if each.is_copy else "close" if each.is_close else "",
        )
        for each in found.generated[:most]
    ]
