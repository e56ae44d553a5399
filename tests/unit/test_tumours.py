"""New tumours in organs, and given ones that move: where they lie, what they leave alone, and what is refused."""

import numpy as np
import pytest
from made_organs import ID, VOCABULARY, body, colon, ml
from scipy import ndimage

from maisi.anatomy.morphology import parts
from maisi.anatomy.tumours import augment_tumours, lesion_shape, plant, tumour_named, tumour_rows
from maisi.anatomy.tumours.shapes import ball_ml
from maisi.anatomy.vocabulary import ClassDeclaration, extended
from maisi.errors import InvalidRequestError
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

LIVER = {"liver": ((0.0, 0.0, 0.0), 50.0)}
TOUCHING = np.ones((3, 3, 3), bool)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The table ------------------------------------------------------------------------------------------------------------


def test_every_row_is_a_tumour_of_the_vocabulary_and_every_tumour_has_a_row() -> None:
    assert {ID(name) for name in tumour_rows()} == set(VOCABULARY.group("tumours"))
    for row in tumour_rows().values():
        assert VOCABULARY.structure(row.name).host is not None
        assert 0 < row.diameter[0] < row.diameter[1]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (26, "hepatic tumor"),
        ("liver tumour", "hepatic tumor"),
        ("Colon Cancer", "colon cancer primaries"),
        ("renal_cell_carcinoma", "kidney tumor"),
        ("GTV_Mass (soft tissue sarcoma)", "soft-tissue sarcoma"),
        ("glioma", "brain tumor"),
    ],
)
def test_a_tumour_is_found_by_its_id_and_by_its_usual_names(asked: str | int, name: str) -> None:
    assert tumour_named(asked, VOCABULARY).name == name


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("hepatic tumr", "did you mean 'hepatic tumor'"),
        ("livr cancer", "did you mean 'hepatic tumor'"),
        ("liver", "liver is no tumour; accepted: hepatic tumor, lung tumor"),
        ("xyz", "unknown tumour 'xyz'; accepted: hepatic tumor"),
        (199, "unknown tumour 199"),
    ],
)
def test_an_unknown_tumour_is_answered_with_the_nearest(asked: str | int, answer: str) -> None:
    with pytest.raises(InvalidRequestError, match=answer.replace("(", r"\(")):
        tumour_named(asked, VOCABULARY)


def test_a_class_that_a_bundle_declares_with_a_host_can_be_planted() -> None:
    vocabulary = extended(VOCABULARY, {154: ClassDeclaration(name="liver abscess", host="liver")})
    planted = plant(body(LIVER), "liver abscess", rng(), diameter_mm=20, vocabulary=vocabulary)
    assert np.count_nonzero(planted.array == 154) > 0


# Shapes ---------------------------------------------------------------------------------------------------------------


def test_one_generator_draws_one_form_on_every_grid() -> None:
    fine = lesion_shape(Grid.centered((64, 64, 64), (1, 1, 1)), (1.0, 2.0, -3.0), 30.0, rng(3))
    coarse = lesion_shape(Grid.centered((32, 64, 16), (2, 1, 4)), (1.0, 2.0, -3.0), 30.0, rng(3))
    alike = fine.reshape(32, 2, 64, 16, 4).mean(axis=(1, 4)) > 0.5
    assert 2 * (alike & coarse).sum() / (alike.sum() + coarse.sum()) > 0.93


def test_a_blob_is_no_ball() -> None:
    grid = Grid.centered((48, 48, 48), (1, 1, 1))
    ball = np.linalg.norm(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)), axis=-1) <= 15
    overlaps = []
    for seed in range(4):
        blob = lesion_shape(grid, (0.0, 0.0, 0.0), 30.0, rng(seed))
        overlaps.append(2 * (blob & ball).sum() / (blob.sum() + ball.sum()))
    assert 0.6 < min(overlaps) < max(overlaps) < 0.95


def test_a_blob_at_the_border_is_cut_there() -> None:
    grid = Grid.centered((40, 40, 40), (1, 1, 1))
    whole = lesion_shape(grid, (0.0, 0.0, 0.0), 16.0, rng())
    cut = lesion_shape(grid, (19.0, 0.0, 0.0), 16.0, rng())
    assert np.array_equal(cut[19:], whole[:21])


def test_a_blob_smaller_than_a_voxel_is_the_voxel_at_its_centre() -> None:
    grid = Grid.centered((8, 8, 8), (4, 4, 10))
    blob = lesion_shape(grid, (2.0, 2.0, 5.0), 1.0, rng())
    assert np.argwhere(blob).tolist() == [[4, 4, 4]]


@pytest.mark.parametrize(
    ("centre", "diameter", "answer"),
    [((50.0, 0.0, 0.0), 10.0, "outside the volume"), ((0.0, 0.0, 0.0), 0.0, "a diameter of 0 mm is impossible")],
)
def test_a_blob_that_cannot_be_is_refused(centre: tuple[float, float, float], diameter: float, answer: str) -> None:
    with pytest.raises(InvalidRequestError, match=answer):
        lesion_shape(Grid.centered((20, 20, 20), (2, 2, 2)), centre, diameter, rng())


# Planting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tumour", "organs", "diameter"),
    [
        ("hepatic tumor", LIVER, 40.0),
        ("lung tumor", {"left lung upper lobe": ((0, 0, 20), 40), "left lung lower lobe": ((0, 0, -20), 40)}, 25.0),
        ("pancreatic tumor", {"pancreas": ((0, 0, 0), 25)}, 30.0),
        ("bone lesion", {"vertebrae L3": ((0, 0, 0), 25), "vertebrae L4": ((0, 0, -50), 25)}, 24.0),
        ("brain tumor", {"brain": ((0, 0, 0), 60)}, 50.0),
        ("soft-tissue sarcoma", {"left femur": ((0, 0, 0), 15)}, 60.0),
        ("kidney tumor", {"right kidney": ((0, 0, 0), 30)}, 40.0),
    ],
)  # fmt: skip
def test_a_planted_tumour_has_its_volume_and_is_one_part(tumour: str, organs: dict, diameter: float) -> None:  # type: ignore[type-arg]
    before = body(organs)
    after = plant(before, tumour, rng(1), diameter_mm=diameter)
    assert ml(after, tumour) == pytest.approx(ball_ml(diameter), rel=0.1)
    changed = after.array != before.array
    assert np.array_equal(changed, after.array == ID(tumour))
    assert len(parts(changed)[1]) == 2
    assert before.array.max() == ID("body")  # what was given is left as it was


def test_a_tumour_keeps_its_margin() -> None:
    before = body(LIVER)
    for seed in range(6):
        after = plant(before, "hepatic tumor", rng(seed), diameter_mm=70)
        depth = ndimage.distance_transform_edt(before.array == ID("liver"), sampling=before.grid.spacing)
        assert depth[after.array == ID("hepatic tumor")].min() > tumour_rows()["hepatic tumor"].margin


def test_a_lesion_of_bone_stays_in_one_bone_and_a_tumour_of_the_lung_on_one_side() -> None:
    bones = body({"vertebrae L3": ((0, 0, 20), 22), "vertebrae L4": ((0, 0, -20), 22)})
    lungs = body({"left lung upper lobe": ((-25, 0, 0), 26), "right lung upper lobe": ((25, 0, 0), 26)})
    for seed in range(5):
        lesion = plant(bones, "bone lesion", rng(seed), diameter_mm=30).array == ID("bone lesion")
        assert len(np.unique(bones.array[lesion])) == 1
        tumour = plant(lungs, "lung tumor", rng(seed), diameter_mm=35).array == ID("lung tumor")
        assert len(np.unique(lungs.array[tumour])) == 1


def test_a_tumour_of_the_kidney_may_bulge_into_the_tissue_around_it_but_not_into_organs() -> None:
    before = body({"liver": ((35, 0, 0), 30), "right kidney": ((0, 0, 0), 25)})
    outside = set()
    for seed in range(8):
        after = plant(before, "kidney tumor", rng(seed), diameter_mm=35)
        outside |= set(np.unique(before.array[after.array == ID("kidney tumor")]))
    assert outside == {ID("right kidney"), ID("body")}


def test_several_tumours_lie_apart_from_each_other_and_from_other_lesions() -> None:
    first = plant(body(LIVER), "hepatic tumor", rng(1), diameter_mm=25)
    after = plant(first, "hepatic tumor", rng(2), diameter_mm=15, number=4)
    assert ndimage.label(after.array == ID("hepatic tumor"), TOUCHING)[1] == 5
    assert not (after.array != first.array)[first.array == ID("hepatic tumor")].any()


def test_a_tumour_lies_where_it_is_asked_for() -> None:
    at = (18.0, -9.0, 12.0)
    after = plant(body(LIVER), "hepatic tumor", rng(), diameter_mm=24, at_mm=at)
    voxels = np.argwhere(after.array == ID("hepatic tumor"))
    assert np.linalg.norm(after.grid.world(voxels).mean(axis=0) - at) < 6


def test_a_volume_is_asked_for_in_millilitres() -> None:
    assert ml(plant(body(LIVER), "hepatic tumor", rng(), volume_ml=20), "hepatic tumor") == pytest.approx(20, rel=0.1)


def test_without_a_size_one_is_drawn_from_the_row() -> None:
    low, high = tumour_rows()["hepatic tumor"].diameter
    volumes = [ml(plant(body(LIVER), "hepatic tumor", rng(seed)), "hepatic tumor") for seed in range(6)]
    assert len(set(volumes)) == 6
    assert all(0.9 * ball_ml(low) <= volume <= 1.1 * ball_ml(high) for volume in volumes)


def test_a_tumour_of_the_colon_lies_in_its_wall_around_the_lumen() -> None:
    before = colon()
    at = before.grid.world(np.argwhere(before.array == ID("colon")))
    at = at[(np.abs(at[:, 2]) < 3) & (at[:, 0] > 15)][0]
    fractions = []
    for seed in range(6):
        after = plant(before, "colon cancer primaries", rng(seed), diameter_mm=32, at_mm=tuple(at))
        points = after.grid.world(np.argwhere(after.array == ID("colon cancer primaries")))
        centre = np.stack([70 * (points[:, 2] / 100) ** 2, np.zeros(len(points))], axis=-1)
        offsets = points[:, :2] - centre
        assert np.linalg.norm(offsets, axis=1).mean() > 10  # of a radius of 20: nearer to the wall than to the middle
        fractions.append(len(np.unique(np.round(np.arctan2(offsets[:, 1], offsets[:, 0]) * 8 / np.pi))) / 17)
        assert points[np.linalg.norm(points - at, axis=1).argmin()] == pytest.approx(at, abs=8)
    assert min(fractions) < max(fractions)  # crescents and rings


def test_an_organ_that_the_field_of_view_cuts_is_no_border() -> None:
    liver = LabelMap(np.full((20, 20, 20), ID("liver"), np.uint8), Grid.centered((20, 20, 20), (2, 2, 2)))
    after = plant(liver, "hepatic tumor", rng(), diameter_mm=24)
    assert ml(after, "hepatic tumor") == pytest.approx(ball_ml(24), rel=0.1)


def test_wide_labels_stay_wide() -> None:
    given = body(LIVER)
    wide = LabelMap(given.array.astype(np.uint16), given.grid)
    after = plant(wide, "hepatic tumor", rng(4), diameter_mm=30)
    assert after.array.dtype == np.uint16
    assert np.array_equal(after.array, plant(given, "hepatic tumor", rng(4), diameter_mm=30).array)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"tumour": "pancreatic tumor"}, "grows in pancreas, which this label map does not hold; it holds liver"),
        ({"diameter_mm": 130.0}, "larger than its organ: liver has 52. ml here"),
        ({"diameter_mm": 40.0, "number": 20}, r"no room for .* beside the \d+ placed of 20"),
        ({"at_mm": (900.0, 0.0, 0.0)}, "outside the volume; accepted: x, y, z in -6. to 6."),
        ({"at_mm": (float("nan"), 0.0, 0.0)}, "outside the volume"),
        ({"at_mm": (60.0, 0.0, 0.0)}, r"which is body; accepted: a place in liver, such as \(4"),
        ({"at_mm": (49.0, 1.0, 2.0)}, r"too near .* hepatic tumor keeps 2 mm, such as \(4"),
        ({"at_mm": (0.0, 0.0, 0.0), "number": 2}, "2 tumours cannot lie at one place"),
        ({"number": 0}, "0 tumours"),
        ({"diameter_mm": -3.0}, "a diameter of -3 mm is impossible"),
        ({"diameter_mm": float("inf")}, "a diameter of inf mm is impossible"),
        ({"volume_ml": 0.0}, "a tumour of 0 ml is impossible"),
        ({"volume_ml": 1.0, "diameter_mm": 3.0}, "give one of"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict, answer: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidRequestError, match=answer):
        plant(body(LIVER, (2, 2, 4)), asked.pop("tumour", "hepatic tumor"), rng(), **asked)


# Augmentation ---------------------------------------------------------------------------------------------------------


def test_a_moved_tumour_leaves_its_organ_whole() -> None:
    before = plant(body(LIVER), "hepatic tumor", rng(1), diameter_mm=30, number=2)
    after = augment_tumours(before, rng(2))
    tumour, liver = ID("hepatic tumor"), ID("liver")
    assert np.array_equal(np.isin(before.array, (tumour, liver)), np.isin(after.array, (tumour, liver)))
    others = ~np.isin(before.array, (tumour, liver))
    assert np.array_equal(before.array[others], after.array[others])
    assert not np.array_equal(before.array == tumour, after.array == tumour)
    assert ndimage.label(after.array == tumour, TOUCHING)[1] == 2


def test_a_tumour_of_the_lung_leaves_its_lobe_behind_and_stays_on_its_side() -> None:
    before = body({"left lung upper lobe": ((-28, 0, 0), 30), "right lung upper lobe": ((28, 0, 0), 30)})
    planted = plant(before, "lung tumor", rng(1), diameter_mm=20, at_mm=(-30.0, 0.0, 0.0))
    for seed in range(5):
        after = augment_tumours(planted, rng(seed))
        tumour = after.array == ID("lung tumor")
        assert set(before.array[tumour]) == {ID("left lung upper lobe")}
        assert np.array_equal(after.array[~tumour], before.array[~tumour])


def test_the_volume_follows_the_drawn_scale() -> None:
    planted = plant(body(LIVER), "hepatic tumor", rng(1), diameter_mm=30)
    ratios = [ml(augment_tumours(planted, rng(seed)), "hepatic tumor") / ball_ml(30) for seed in range(8)]
    assert len({round(ratio, 3) for ratio in ratios}) == 8
    assert 0.8**3 * 0.9 < min(ratios) < 1 < max(ratios) < 1.2**3 * 1.1


def test_no_strength_leaves_a_tumour_nearly_as_it_is() -> None:
    planted = plant(body(LIVER, (2, 2, 2), 108.0), "hepatic tumor", rng(1), diameter_mm=36)
    after = augment_tumours(planted, rng(2), strength=0.0)
    a, b = planted.array == ID("hepatic tumor"), after.array == ID("hepatic tumor")
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.97


def test_only_the_tumours_that_are_named_move() -> None:
    both = body({"liver": ((-25, 0, 0), 40), "pancreas": ((40, 0, 0), 24)})
    planted = plant(plant(both, "hepatic tumor", rng(1), diameter_mm=20), "pancreatic tumor", rng(2), diameter_mm=16)
    after = augment_tumours(planted, rng(3), tumours=["pancreas cancer"])
    moved = planted.array != after.array
    assert moved.any()
    assert set(np.unique(planted.array[moved])) == {ID("pancreas"), ID("pancreatic tumor")}


def test_a_tumour_that_fills_its_organ_finds_no_other_place_but_its_own() -> None:
    labels = body({"hepatic tumor": ((0, 0, 0), 30)})
    labels.array[22, 22, 16] = ID("liver")
    with pytest.raises(InvalidRequestError, match=r"found no place in its organ after 40 tries"):
        augment_tumours(labels, rng(), strength=40.0)


@pytest.mark.parametrize(
    ("organs", "asked", "answer"),
    [
        (LIVER, {}, "this label map holds no tumour to vary; new ones can be planted"),
        (LIVER, {"tumours": ["lung tumor"]}, "this label map holds no lung tumor to vary"),
        (LIVER, {"tumours": ["hepatic tumr"]}, "did you mean"),
        ({"hepatic tumor": ((0, 0, 0), 20)}, {}, "hepatic tumor lies in no liver here"),
        (LIVER, {"strength": -1.0}, "a strength of -1 is impossible"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(organs: dict, asked: dict, answer: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidRequestError, match=answer):
        augment_tumours(body(organs), rng(), **asked)


def test_a_lesion_too_flat_for_thick_slices_is_refused_and_no_fault() -> None:
    thick = Grid.centered((125, 125, 10), (0.8, 0.8, 10.0))
    with pytest.raises(InvalidRequestError, match=r"no connected form in voxels of 0\.8 x 0\.8 x 10 mm"):
        lesion_shape(thick, (3.0, -2.0, 1.0), 7.0, rng(0))
