"""Plots of evaluation pages."""

import re

import pytest

from maisi.evaluation.page import bars, forest, strip

LONG = "precision, the same, as many as a half has"


@pytest.mark.parametrize("drawn", [bars([(LONG, 0.5, 0.4, 0.6)]), forest([(LONG, 0.0, -0.1, 0.1)], 0.05)])
def test_a_plot_begins_right_of_the_longest_name(drawn: str) -> None:
    starts = [float(x) for x in re.findall(r"<(?:rect x|line x1|circle cx)='([0-9.]+)'", drawn)]
    assert min(starts) > 6.5 * len(LONG)  # pixels of a letter at 13 px
    assert max(float(x) for x in re.findall(r"(?:x2|cx)='([0-9.]+)'", drawn)) <= float(
        re.findall(r"width='([0-9]+)' height", drawn)[-1]
    )


def test_bars_of_nothing_are_none() -> None:
    assert bars([]) == ""


def test_points_of_a_strip_begin_right_of_the_longest_name() -> None:
    drawn = strip([(LONG, [0.0, 1.0])], [("mark", 0.5)])
    assert min(float(x) for x in re.findall(r"circle cx='([0-9.]+)'", drawn)) > 6.5 * len(LONG)


def test_a_forest_tells_its_margin_in_numbers() -> None:
    assert re.findall(r">([+-][0-9.]+)<", forest([("liver", 0.0, -0.1, 0.1)], 0.05)) == ["-0.05", "+0", "+0.05"]
