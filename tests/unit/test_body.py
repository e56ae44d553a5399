"""The body in a CT and its coarse tissues, on drawn scenes whose truth is known."""

import numpy as np
import pytest

from maisi.anatomy.body import body_envelope, complete_labels, enclosed, redrawn_tissues, tissue_labels
from maisi.anatomy.morphology import close_mask, dilate, erode, without_specks
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError, InvalidVolumeError
from maisi.phantom.draw import draw_phantom
from maisi.space.files import read_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume

vocabulary = load_vocabulary()
GRID = Grid.centered((70, 60, 24), (4, 4, 5))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def ellipse(x0: float, y0: float, rx: float, ry: float) -> np.ndarray:
    x, y, _ = np.moveaxis(GRID.world(np.moveaxis(np.indices(GRID.shape), 0, -1)), -1, 0)
    return ((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2 < 1


BODY, LUNGS = ellipse(0, 0, 120, 85), ellipse(-55, 5, 40, 50) | ellipse(55, 5, 40, 50)
BONE, FAT_RIM = ellipse(0, -45, 16, 14), BODY & ~ellipse(0, 0, 108, 73)


def scene(outside_hu: float = -1000.0, table: bool = False) -> Volume:
    noise = np.random.default_rng(0).normal(0, 10, GRID.shape)
    lung_texture = np.random.default_rng(1).normal(0, 50, GRID.shape)
    hu = np.full(GRID.shape, outside_hu)
    if table:
        hu[5:65, 4:6] = 150
        hu[5:65, 6:8] = -870
    for mask, value in ((BODY, 50), (FAT_RIM, -105), (LUNGS, -840), (BONE, 500)):
        hu[mask] = value
    hu = np.where(LUNGS, hu + lung_texture, hu)
    return Volume((hu + np.where(BODY, noise, 0)).astype(np.float32), GRID)


@pytest.mark.parametrize("outside_hu", [-1000.0, -1024.0])
@pytest.mark.parametrize("table", [False, True])
def test_the_envelope_is_the_body_with_its_lungs_and_without_the_table(outside_hu: float, table: bool) -> None:
    assert dice(body_envelope(scene(outside_hu, table)), BODY) > 0.99


def test_a_crop_that_the_body_fills_to_the_border_is_all_body() -> None:
    crop = scene().array[25:45, 20:40]  # spine, heart and the inner halves of the lungs, cut open
    grid = GRID.window((25, 20, 0), crop.shape)
    assert body_envelope(Volume(crop, grid)).mean() > 0.97


def test_two_legs_are_both_body_and_the_gap_between_is_not() -> None:
    legs = ellipse(-60, 0, 45, 50) | ellipse(60, 0, 45, 50)
    volume = Volume(np.where(legs, 50, -1000).astype(np.float32), GRID)
    assert dice(body_envelope(volume), legs) > 0.99


def test_each_tissue_is_found_where_it_is() -> None:
    labels = tissue_labels(scene(table=True)).array
    inner = vocabulary.id("body")
    for name, truth in (("lungs", LUNGS), ("skeleton", BONE), ("fat", FAT_RIM)):
        assert dice(labels == vocabulary.id(name), truth) > 0.85, name
    assert dice(labels == inner, BODY & ~LUNGS & ~BONE & ~FAT_RIM) > 0.85
    assert ((labels != 0) == body_envelope(scene(table=True))).all()


def test_without_fat_all_soft_tissue_is_body() -> None:
    labels = tissue_labels(scene(), fat=False).array
    assert not (labels == vocabulary.id("fat")).any()
    assert dice(labels == vocabulary.id("body"), BODY & ~LUNGS & ~BONE) > 0.95


def test_a_vessel_full_of_contrast_medium_is_not_bone() -> None:
    vessel = ellipse(0, 30, 16, 16)
    volume = scene()
    filled = Volume(np.where(vessel, 350 + volume.array % 20, volume.array).astype(np.float32), GRID)
    labels = tissue_labels(filled).array
    assert (labels[vessel] == vocabulary.id("skeleton")).mean() < 0.1
    assert (labels[BONE] == vocabulary.id("skeleton")).mean() > 0.8


def test_completing_keeps_what_is_labelled_and_leaves_no_body_voxel_empty() -> None:
    given = np.zeros(GRID.shape, np.uint8)
    liver = ellipse(30, -20, 20, 15)
    given[liver] = vocabulary.id("liver")
    given[ellipse(0, 60, 30, 10)] = vocabulary.id("body")
    completed = complete_labels(LabelMap(given, GRID), scene()).array
    assert (completed[liver] == vocabulary.id("liver")).all()
    assert (completed[body_envelope(scene())] != 0).all()
    assert set(np.unique(completed)) <= {0, *vocabulary.ids}


def test_tissues_are_redrawn_as_a_coarser_volume_shows_them() -> None:
    fine = scene()
    rib = ellipse(95, 0, 5, 6)
    fine = Volume(np.where(rib, 400, fine.array).astype(np.float32), GRID)
    labels = tissue_labels(fine).array.copy()
    labels[ellipse(0, 40, 15, 15)] = vocabulary.id("liver")
    coarse_grid = with_spacing(GRID, (9, 9, 5))
    volume, before = resample(fine, coarse_grid), resample(LabelMap(labels, GRID), coarse_grid)
    after = redrawn_tissues(before, volume).array

    shown = tissue_labels(volume).array == vocabulary.id("skeleton")
    skeleton = before.array == vocabulary.id("skeleton")
    assert dice(skeleton, shown) < 0.95  # the rib's label is still there, its brightness is not
    np.testing.assert_array_equal(after == vocabulary.id("skeleton"), shown)
    for name in ("liver", "lungs"):
        np.testing.assert_array_equal(after == vocabulary.id(name), before.array == vocabulary.id(name))
    np.testing.assert_array_equal(after > 0, before.array > 0)


def test_air_is_redrawn_inside_the_body_only() -> None:
    cavity = ellipse(0, 30, 12, 10)
    volume = Volume(np.where(cavity, -1000, scene().array).astype(np.float32), GRID)
    with_rim = dilate(BODY, 5.0, GRID.spacing, (True, True, False))
    labels = np.where(with_rim, vocabulary.id("body"), 0).astype(np.uint8)
    labels[ellipse(0, -75, 12, 8)] = vocabulary.id("air")
    labels[LUNGS] = vocabulary.id("lungs")
    after = redrawn_tissues(LabelMap(labels, GRID), volume).array
    assert dice(after == vocabulary.id("air"), cavity) > 0.95


def test_labels_on_another_grid_and_unknown_ids_are_refused() -> None:
    with pytest.raises(InvalidLabelsError, match="not on the grid"):
        complete_labels(LabelMap(np.zeros((9, 9, 9), np.uint8), Grid.centered((9, 9, 9), (1, 1, 1))), scene())
    with pytest.raises(InvalidLabelsError, match="250"):
        complete_labels(LabelMap(np.full(GRID.shape, 250, np.uint8), GRID), scene())


def test_a_volume_without_a_body_is_refused() -> None:
    with pytest.raises(InvalidVolumeError, match="no body found"):
        body_envelope(Volume(np.full(GRID.shape, -1000, np.float32), GRID))
    with pytest.raises(InvalidVolumeError, match="CT is needed"):
        body_envelope(Volume(np.zeros(GRID.shape, np.float32), GRID, "mr"))


def test_kernels_are_millimetres_on_any_spacing() -> None:
    for spacing in ((1.0, 1.0, 1.0), (2.0, 1.0, 4.0)):
        shape = tuple(int(64 / s) for s in spacing)
        x, y, z = (np.arange(n) * s + s / 2 - 32 for n, s in zip(shape, spacing, strict=True))
        ball = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < 20**2
        volume_ml = ball.sum() * np.prod(spacing) / 1000
        assert erode(ball, 8, spacing).sum() * np.prod(spacing) / 1000 == pytest.approx(volume_ml * 0.6**3, rel=0.25)
        assert dilate(ball, 8, spacing).sum() * np.prod(spacing) / 1000 == pytest.approx(volume_ml * 1.4**3, rel=0.15)


def test_erosion_removes_thin_things_closing_fills_slits_and_specks_go() -> None:
    mask = np.zeros((40, 40, 10), bool)
    mask[5:20, 5:20] = True
    mask[20:40, 10:12] = True  # a plate 2 mm thick
    assert not erode(mask, 2, (1, 1, 1), (True, True, False))[25:].any()
    slit = mask.copy()
    slit[12, 5:20] = False
    assert close_mask(slit, 1.5, (1, 1, 1))[12, 8:17, 3:7].all()
    specks = mask.copy()
    specks[30, 30, 5] = True
    assert not without_specks(specks, 0.01, (1, 1, 1))[30, 30, 5]


def test_tissues_of_a_real_ct_agree_with_its_organ_labels(shared_data) -> None:  # type: ignore[no-untyped-def]
    folder = shared_data / "torso_head" / "totalseg_example_ct"
    volume, labels = read_volume(folder / "ct.nii.gz"), read_labels(folder / "labels_maisi.nii.gz")
    tissues = tissue_labels(volume).array
    bones = np.isin(labels.array, vocabulary.group("bones"))
    assert (tissues[labels.array == vocabulary.id("liver")] == vocabulary.id("body")).mean() > 0.85
    assert (tissues[bones] == vocabulary.id("skeleton")).mean() > 0.55
    assert dice(tissues != 0, labels.array != 0) > 0.98


@pytest.mark.parametrize("region", ["chest", "abdomen", "head"])
def test_a_body_drawn_around_organs_is_nearly_the_one_that_was_there(region: str) -> None:
    labels = draw_phantom(region, Grid.centered((48, 40, 24), (8, 8, 12)), np.random.default_rng(1))
    ids = labels.array.astype(np.uint8)
    filler = np.isin(ids, [vocabulary.id("body"), vocabulary.id("fat")])
    bare = LabelMap(np.where(filler, np.uint8(0), ids), labels.grid)
    found = enclosed(bare).array
    named = bare.array.any(axis=(0, 1))
    assert dice(found[:, :, named] > 0, ids[:, :, named] > 0) > 0.85
    assert np.array_equal(found[bare.array > 0], bare.array[bare.array > 0])  # what is named stays
    assert set(np.unique(found)) - set(np.unique(bare.array)) == {vocabulary.id("body")}


def test_a_plane_without_structures_stays_empty() -> None:
    ids = np.zeros((20, 20, 6), np.uint8)
    ids[8:12, 8:12, 2:4] = vocabulary.id("liver")
    found = enclosed(LabelMap(ids, Grid.centered(ids.shape, (5, 5, 5)))).array
    assert not found[:, :, [0, 1, 4, 5]].any()
    assert (found[:, :, 2] > 0).sum() > (ids[:, :, 2] > 0).sum()


def test_the_drawn_outline_has_no_steps_from_plane_to_plane() -> None:
    ids = np.zeros((40, 40, 12), np.uint8)
    ids[14:26, 14:26, ::2] = vocabulary.id("liver")
    ids[17:23, 17:23, 1::2] = vocabulary.id("liver")
    found = enclosed(LabelMap(ids, Grid.centered(ids.shape, (5, 5, 3)))).array > 0
    widths = found[:, 20].sum(axis=0)  # 12 and 6 voxels of liver in turn
    assert np.abs(np.diff(widths)).max() <= 2
