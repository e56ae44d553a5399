"""Label sources whose maps are changed into what was asked for, and how the command line says it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.resize import check_voxels
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Limits
from maisi.cli.options import one_by_one
from maisi.errors import InvalidAnatomyError, InvalidConfigError
from maisi.phantom.draw import draw_phantom
from maisi.pipelines.asked import asked
from maisi.pipelines.labels import GridRules, LabelRules, LabelSource, PhantomLabels, file_source, folder_sources
from maisi.pipelines.requests import GenerateRequest
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.storage.settings import check_settings

V = load_vocabulary()
GRID = Grid.centered((48, 40, 40), (8, 8, 8))
RULES = GridRules(Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(20, 20, 20), max_size=(64, 64, 64)), 4)


def draw(source: LabelSource, seed: int) -> np.ndarray:
    labels = source.draw(np.random.default_rng(seed), torch.Generator()).labels
    assert labels is not None
    return labels.array


def test_every_draw_of_a_phantom_shows_what_was_asked_and_is_another_person() -> None:
    source = asked(PhantomLabels("abdomen", GRID), AnatomyRequest.parse(["liver=1600ml", "gallbladder=none"]))
    first, second = (draw(source, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    for ids in (first, second):
        assert (np.isin(ids, [V.id("liver"), V.id("hepatic vessel")])).sum() * 0.512 == pytest.approx(1600, rel=0.05)
        assert not (ids == V.id("gallbladder")).any()
    np.testing.assert_array_equal(first, draw(source, 0))


def test_what_lies_outside_of_the_region_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(InvalidAnatomyError, match="outside of chest"):
        asked(PhantomLabels("chest", GRID), AnatomyRequest.parse(["bladder=any"]))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("hepatic tumor=0.4ml", "hepatic tumor of 0.4 ml is 0.781 voxels of 8 x 8 x 8 mm; accepted: 0.8 or more"),
        ("spleen=3.8ml", "spleen of 3.8 ml is 7.42 voxels of 8 x 8 x 8 mm; accepted: 8 or more"),
    ],
)
def test_what_is_smaller_than_its_fewest_voxels_is_refused_before_anything_is_drawn(wish: str, message: str) -> None:
    with pytest.raises(InvalidAnatomyError, match=message):
        asked(PhantomLabels("abdomen", GRID), AnatomyRequest.parse([wish]))


def test_as_many_voxels_as_are_needed_are_enough_on_every_grid() -> None:
    for step in range(10, 101):
        spacing = (0.05 * step,) * 3
        voxel_ml = float(np.prod(spacing)) / 1000
        for name, voxels in (("liver", 8), ("liver", 7.6), ("hepatic tumor", 1), ("hepatic tumor", 0.81)):
            check_voxels(V.id(name), voxels * voxel_ml, spacing, V)
        with pytest.raises(InvalidAnatomyError):
            check_voxels(V.id("liver"), 7.4 * voxel_ml, spacing, V)


def test_a_file_is_asked_for_what_it_can_show_only(tmp_path: Path) -> None:
    path = tmp_path / "patient.nii.gz"
    write_labels(draw_phantom("abdomen", GRID, np.random.default_rng(2)), path)
    with pytest.raises(InvalidAnatomyError, match=r"patient\.nii\.gz: the label map has no brain"):
        file_source(path, LabelRules(RULES, anatomy=AnatomyRequest.parse(["brain=0.5"])))
    request = AnatomyRequest.parse(["spleen=120ml"])
    (source,) = folder_sources(tmp_path, LabelRules(RULES, anatomy=request))
    drawn = asked(source, request).draw(np.random.default_rng(0), torch.Generator())
    assert drawn.obtained[V.id("spleen")] == pytest.approx(120, rel=0.05)
    assert drawn.asked == {V.id("spleen"): 120}


def test_anatomy_is_a_list_a_mapping_or_one_text() -> None:
    said = ("liver=0.6", "gallbladder=none")
    assert GenerateRequest(anatomy=said).anatomy == said
    assert GenerateRequest.model_validate({"anatomy": {"liver": 0.6, "gallbladder": "none"}}).anatomy == said
    assert GenerateRequest.model_validate({"anatomy": "liver=0.6"}).anatomy == said[:1]


def test_settings_say_what_is_wrong_with_a_size() -> None:
    with pytest.raises(InvalidConfigError, match=r"^anatomy: liver: 'big' is no size; accepted: a size"):
        check_settings(GenerateRequest, {"anatomy": ["liver=big"]})
    with pytest.raises(InvalidConfigError, match="either anatomy or unlabelled"):
        check_settings(GenerateRequest, {"anatomy": ["liver=any"], "unlabelled": True})


def test_one_option_takes_several_assignments() -> None:
    given = ["generate", "--anatomy", "liver=0.6", "hepatic tumor=0.3", "-s", "a=b", "--out", "x=y", "--anatomy", "z=1"]
    told = ["--anatomy", "liver=0.6", "--anatomy", "hepatic tumor=0.3", "-s", "a=b", "--out", "x=y", "--anatomy", "z=1"]
    assert one_by_one(given) == ["generate", *told]
    assert one_by_one(["--anatomy", "-o", "x"]) == ["--anatomy", "-o", "x"]
