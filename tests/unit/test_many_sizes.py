"""Sizes of structures in a request file, as requests for anatomy take them."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError
from maisi.pipelines.many.facts import SampleFacts
from maisi.pipelines.many.page import write_page
from maisi.pipelines.many.requests import ManyRequest
from maisi.pipelines.many.sizes import check_sizes, draw_sizes


def sizes(value: Any, seed: int = 0) -> list[str]:
    check_sizes(value, "anatomy")
    return draw_sizes(value, lambda name: np.random.default_rng([seed, zlib.crc32(name.encode())]), "anatomy")


def test_sizes_are_written_as_a_request_takes_them() -> None:
    value = {"liver": 0.6, "gallbladder": "none", "spleen": {"uniform": [180, 180], "unit": "ml"}, "colon": "any"}
    assert sizes(value) == ["liver=0.6", "gallbladder=none", "spleen=180ml", "colon=any"]


def test_a_share_of_the_samples_asks_for_a_structure() -> None:
    value = {"hepatic tumor": {"uniform": [5, 30], "unit": "mm", "share": 0.25}, "liver": 0.5}
    found = [sizes(value, seed) for seed in range(400)]
    with_tumour = [each for each in found if len(each) == 2]
    assert 0.18 < len(with_tumour) / 400 < 0.32
    assert all(5 <= float(each[0].removeprefix("hepatic tumor=").removesuffix("mm")) <= 30 for each in with_tumour)
    assert [each[-1] for each in found] == ["liver=0.5"] * 400


def test_a_choice_between_mappings_keeps_together_what_belongs_together() -> None:
    value = {"choice": [{"hepatic tumor": "20mm", "liver": 0.7}, {}]}
    assert {tuple(sizes(value, seed)) for seed in range(40)} == {("hepatic tumor=20mm", "liver=0.7"), ()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "anatomy is 0.5; accepted: sizes by names"),
        ({"liver": {"unifrom": [0, 1]}}, r"anatomy.liver: unknown distribution 'unifrom'; did you mean 'uniform'\?"),
        ({"liver": {"uniform": [0, 1], "share": 2}}, "anatomy.liver.share: 2 is not accepted"),
        ({"liver": {"uniform": [0, 1], "unit": 3}}, "anatomy.liver.unit: 3 is not accepted"),
        ({"liver": None}, "anatomy.liver is None; accepted: a size"),
        ({"uniform": [0, 1]}, "accepted: sizes by names of structures, or a choice"),
        ({"choice": [{"liver": True}]}, "anatomy.liver is True"),
    ],
)
def test_what_are_no_sizes_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        check_sizes(value, "anatomy")


def test_the_page_holds_what_was_asked_for_against_what_is_compared_with_it(tmp_path: Path) -> None:
    made = SampleFacts(
        index=0,
        request={"seed": 0},
        case=Case(id="sample_00000", group="synthetic"),
        volumes_ml={"liver": 820.0, "hepatic tumor": 700.0},
        asked_ml={"liver": 1520.0},
        obtained_ml={"liver": 1520.0},
    )
    page = write_page([made], ManyRequest(count=1), tmp_path).read_text()
    assert "<td>liver</td><td>1</td><td>1520</td><td>1520</td><td>1</td>" in page
    before = made.model_copy(update={"index": 1, "obtained_ml": {}})  # of a version that did not tell it
    both = write_page([made, before], ManyRequest(count=2), tmp_path).read_text()
    assert "<td>liver</td><td>2</td><td>1520</td><td>1170</td>" in both
