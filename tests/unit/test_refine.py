"""Small structures drawn again at finer spacing, by networks of random weights."""

from pathlib import Path

import numpy as np
import pytest
from made_abdomen import BODY, GRID, LIMITS, LIVER, VOCABULARY, write_abdomen
from made_bundle import random_bundle

from maisi.anatomy.references import hu_range
from maisi.bundle.bundle import Bundle
from maisi.errors import InvalidRequestError
from maisi.pipelines.refine import Refined, adherence, finer_labels, refine, validate_refine
from maisi.pipelines.refine_request import RefineRequest
from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume

GALLBLADDER = VOCABULARY.id("gallbladder")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return random_bundle(LIMITS)


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The abdomen with a gallbladder that looks like liver."""
    folder = write_abdomen(tmp_path_factory.mktemp("abdomen"))
    ids = read_labels(folder / "labels.nii").array.copy()
    ids[24:29, 18:23, 12:16] = GALLBLADDER
    write_labels(LabelMap(ids, GRID), folder / "labels.nii")
    return folder


def asked(folder: Path, **more: object) -> RefineRequest:
    fields = {
        "source": folder / "ct.nii",
        "labels": folder / "labels.nii",
        "structures": "gallbladder",
        "steps": 1,
        "compute": {"precision": "float32"},
    }
    return RefineRequest.model_validate({**fields, **more})


@pytest.fixture(scope="module")
def result(bundle: Bundle, abdomen: Path) -> Refined:
    return refine(asked(abdomen), bundle)


def test_only_the_structure_and_its_border_change(result: Refined) -> None:
    may = result.changed.array > 0
    np.testing.assert_array_equal(result.volume.array[~may], result.before.array[~may])
    inside = result.labels.array == GALLBLADDER
    assert may[inside].all()
    assert (result.volume.array[inside] != result.before.array[inside]).mean() > 0.5
    assert may.mean() < 0.1


def test_windows_are_as_fine_as_the_bundle_was_trained_for(bundle: Bundle, abdomen: Path) -> None:
    ((window, _),) = validate_refine(asked(abdomen), bundle).windows
    assert window.grid.spacing == pytest.approx((2.0, 2.0, 2.0))
    ((window, _),) = validate_refine(asked(abdomen, zoom=(3.0, 3.0, 3.0)), bundle).windows
    assert window.grid.spacing == pytest.approx((3.0, 3.0, 3.0))


def test_the_result_can_have_the_finer_voxels(bundle: Bundle, abdomen: Path) -> None:
    made = refine(asked(abdomen, spacing=(2.0, 2.0, 2.0)), bundle)
    assert made.volume.grid.spacing == pytest.approx((2.0, 2.0, 2.0))
    assert made.volume.grid.is_close(made.labels.grid)
    assert made.volume.grid.fov_mm == pytest.approx(GRID.fov_mm)


def test_what_it_did_is_told_for_each_structure(result: Refined) -> None:
    (told,) = result.structures
    assert told.structure == "gallbladder"
    assert told.ml == pytest.approx(5 * 5 * 4 * 64 / 1000, abs=0.01)
    assert told.before.contrast_hu == pytest.approx(0, abs=10)
    assert told.before.expected_hu < -40
    low, high = hu_range(GALLBLADDER, VOCABULARY).usual
    inside = result.labels.array == GALLBLADDER
    assert np.median(result.before.array[inside]) > high  # it looked like liver
    assert low - 10 < np.median(result.volume.array[inside]) < high + 10
    assert abs(told.after.contrast_hu - told.after.expected_hu) < abs(told.before.contrast_hu - told.before.expected_hu)


def test_a_structure_that_has_a_usual_level_keeps_it(bundle: Bundle, abdomen: Path, tmp_path: Path) -> None:
    ct, labels = read_volume(abdomen / "ct.nii"), read_labels(abdomen / "labels.nii")
    inside = labels.array == GALLBLADDER
    write_volume(Volume(np.where(inside, 12.0, ct.array), GRID), tmp_path / "ct.nii")
    made = refine(asked(abdomen, source=tmp_path / "ct.nii"), bundle)
    assert np.median(made.volume.array[inside]) == pytest.approx(12, abs=8)


def test_adherence_is_whole_where_the_image_shows_the_table() -> None:
    ids = np.full((16, 16, 16), BODY, np.uint8)
    ids[4:12, 4:12, 4:12] = LIVER
    body, liver = (VOCABULARY.structure(id).hu[0] for id in (BODY, LIVER))
    grid = Grid.centered(ids.shape, (2.0, 2.0, 2.0))
    labels, shown = LabelMap(ids, grid), np.where(ids == LIVER, liver, body)
    whole = adherence(Volume(shown, grid), labels, LIVER, VOCABULARY)
    assert whole.contrast_hu == whole.expected_hu == liver - body
    assert whole.correlation == 1
    assert adherence(Volume(-shown, grid), labels, LIVER, VOCABULARY).correlation == -1
    assert adherence(Volume(np.zeros(ids.shape), grid), labels, LIVER, VOCABULARY).correlation == 0


def test_finer_labels_have_smooth_borders_and_the_same_volume() -> None:
    grid = Grid.centered((12, 12, 12), (4.0, 4.0, 4.0))
    x, y, z = np.meshgrid(*[np.linspace(-22, 22, 12)] * 3, indexing="ij")
    coarse = LabelMap(np.where(x**2 + y**2 + z**2 < 15**2, LIVER, BODY).astype(np.uint8), grid)
    finer = with_spacing(grid, (1.0, 1.0, 1.0))
    x, y, z = np.meshgrid(*[np.linspace(-23.5, 23.5, 48)] * 3, indexing="ij")
    ball = x**2 + y**2 + z**2 < 15**2
    smooth, blocky = finer_labels(coarse, finer).array == LIVER, resample(coarse, finer).array == LIVER
    assert (smooth ^ ball).sum() < 0.8 * (blocky ^ ball).sum()
    assert smooth.sum() == pytest.approx(blocky.sum(), rel=0.1)


@pytest.mark.parametrize("spacing", [2.0, 3.0, 8.0])
def test_a_structure_of_one_voxel_stays_where_it_is(spacing: float) -> None:
    grid = Grid.centered((12, 12, 12), (4.0, 4.0, 4.0))
    ids = np.full(grid.shape, LIVER, np.uint8)
    ids[4, 7, 5] = GALLBLADDER
    other = with_spacing(grid, (spacing,) * 3)
    found = np.argwhere(finer_labels(LabelMap(ids, grid), other).array == GALLBLADDER)
    assert len(found) == max(1, round((4 / spacing) ** 3))
    assert np.abs(other.world(found) - grid.world(np.array([4, 7, 5]))).max() <= (spacing + 4) / 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"structures": "galbladder"}, "did you mean 'gallbladder'"),
        ({"structures": "spleen"}, "holds no spleen"),
        ({"structures": ()}, "what is to be drawn again"),
        ({"labels": None}, "what is to be drawn again"),
        ({"labels": "elsewhere.nii"}, "not on the grid"),
        ({"zoom": (4.0, 4.0, 4.0)}, "no finer than"),
        ({"zoom": (1.0, 1.0, 1.0)}, "--force goes on"),
    ],
)
def test_what_cannot_be_is_refused(bundle: Bundle, abdomen: Path, more: dict, said: str) -> None:
    if more.get("labels"):
        more = {"labels": abdomen / more["labels"]}
    with pytest.raises(InvalidRequestError, match=said):
        validate_refine(asked(abdomen, **more), bundle)


def test_a_volume_that_is_fine_already_is_refused(bundle: Bundle, abdomen: Path, tmp_path: Path) -> None:
    grid = Grid.centered((20, 20, 20), (2.0, 2.0, 2.0))
    ids = np.full(grid.shape, LIVER, np.uint8)
    ids[8:12, 8:12, 8:12] = GALLBLADDER
    noise = np.random.default_rng(0).normal(60, 10, grid.shape) - 900 * (np.arange(20) < 4)
    write_volume(Volume(noise, grid), tmp_path / "ct.nii")
    write_labels(LabelMap(ids, grid), tmp_path / "labels.nii")
    with pytest.raises(InvalidRequestError, match="no finer than"):
        validate_refine(asked(tmp_path), bundle)
