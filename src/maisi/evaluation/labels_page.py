"""The page of a segmenter on real and on synthetic volumes."""

from html import escape

from maisi.evaluation.labels import Figures, LabelReport
from maisi.evaluation.page import forest, page, table, told


def labels_page(found: LabelReport) -> str:
    """Differences of Dice beside the margin, and all figures."""
    differences = [
        (each.name, each.test.difference, each.test.low, each.test.high)
        for each in found.structures
        if each.test.difference is not None and each.test.low is not None and each.test.high is not None
    ]
    header = ("", "", "Dice", f"surface Dice, {found.tolerance_mm:g} mm", "HD95 mm", "missed", "verdict")
    rows = []
    for each in found.structures:
        p = "" if each.test.p is None else f" (p {each.test.p:.3f})"
        rows.append((each.name, "real", *_cells(each.real), f"{each.test.verdict}{p}"))
        rows.append(("", "synthetic", *_cells(each.synthetic), "paired" if each.test.paired else "not paired"))
    parts = [
        f"<h1>A segmenter on {found.num_real} real and {found.num_synthetic} synthetic volumes</h1>",
        f"<p class='faint'>{escape(found.segmenter)}. Intervals of means: 95 %, over patients. Equivalent: the 90 % "
        f"interval of the difference of Dice lies within {found.margin:g} of 0 (two one-sided tests at 5 %). Not "
        "found: Dice 0 in nearly all cases of both sets.</p>",
        "<h2>Dice, synthetic less real</h2>",
        forest(differences, found.margin) if differences else "<p>Too few cases for any interval, or none found.</p>",
        "<h2>Figures</h2>",
        table(header, rows),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
        *(f"<p>Left out: {each.set} case {escape(each.id)}: {escape(each.words)}.</p>" for each in found.failures),
    ]
    return page("Labels", parts)


def _cells(found: Figures) -> tuple[str, str, str, str]:
    distance = "" if found.hd95_mm is None else told(found.hd95_mm, 1)
    return told(found.dice), told(found.surface_dice), distance, f"{found.missed} of {found.dice.cases}"
