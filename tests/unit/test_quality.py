"""What is found of label maps and of CTs that are to show them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from maisi.anatomy.measure import contacts, core, faces, looks, pieces
from maisi.anatomy.references import hu_range, hu_references, piece_references
from maisi.anatomy.segmented import segmented_classes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, save_bundle
from maisi.errors import InvalidBundleError, InvalidLabelsError
from maisi.networks.segmenter import SegmentationUNet, SegmenterConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.quality.judge import judge, judge_labels
from maisi.pipelines.quality.report import QualityReport, StructureReport
from maisi.pipelines.quality.segmenter import Segmenter, compared, overlaps, segmenter_of
from maisi.pipelines.quality.settings import QualitySettings
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
LIVER, BODY, TUMOUR, SPLEEN = (VOCABULARY.id(name) for name in ("liver", "body", "hepatic tumor", "spleen"))
GRID = Grid.centered((24, 24, 24), (10.0, 10.0, 10.0))  # voxels of 1 ml


def blocks(**at: slice) -> LabelMap:
    """A body with cubes in it; in each, the structure of that name at those indices of every axis."""
    ids = np.zeros(GRID.shape, np.uint8)
    ids[2:-2, 2:-2, 2:-2] = BODY
    for name, where in at.items():
        ids[where, where, where] = VOCABULARY.id(name.replace("_", " "))
    return LabelMap(ids, GRID)


def shown(labels: LabelMap, **hu: float) -> Volume:
    """A CT of labels: air outside, 40 HU in the body, and in structures what is said."""
    values = np.where(labels.array == 0, -1000.0, 40.0).astype(np.float32)
    for name, value in hu.items():
        values[labels.array == VOCABULARY.id(name.replace("_", " "))] = value
    rng = np.random.default_rng(0)
    return Volume(values + rng.normal(0, 10, GRID.shape).astype(np.float32), GRID)


def row(report: QualityReport, name: str) -> StructureReport:
    return next(each for each in report.structures if each.name == name)


def failures(report: QualityReport, name: str) -> list[str]:
    return [each.check for each in row(report, name).findings if each.level == "fail"]


# Measures -------------------------------------------------------------------------------------------------------------


def test_the_core_of_a_structure_has_no_voxel_at_its_surface() -> None:
    inside = core(blocks(liver=slice(6, 14)).array)
    assert inside[7:13, 7:13, 7:13].all()
    assert not inside[6, 6:14, 6:14].any()
    assert not inside[14, 6:14, 6:14].any()  # the body beside it


def test_partial_volume_at_the_surface_does_not_move_the_median() -> None:
    labels = blocks(liver=slice(6, 14))
    volume = shown(labels, liver=60.0)
    blurred = volume.array.copy()
    blurred[(labels.array == LIVER) & ~core(labels.array)] = -300.0
    look = looks(Volume(blurred, GRID), labels)[LIVER]
    assert look.is_core
    assert look.median == pytest.approx(60, abs=2)
    assert look.spread == pytest.approx(10, abs=2)


def test_faces_count_both_ways_and_tell_the_step() -> None:
    labels = blocks(liver=slice(6, 14))
    found = faces(shown(labels, liver=140.0), labels)
    assert found[LIVER, BODY].count == found[BODY, LIVER].count == 6 * 8 * 8 == contacts(labels)[LIVER, BODY]
    assert found[LIVER, BODY].step == pytest.approx(-100, abs=2)
    assert found[BODY, LIVER].step == pytest.approx(100, abs=2)


def test_pieces_that_touch_by_a_corner_are_one() -> None:
    ids = np.zeros((6, 6, 6), np.uint8)
    ids[1, 1, 1] = ids[2, 2, 2] = ids[5, 5, 5] = LIVER
    found = pieces(LabelMap(ids, Grid.centered((6, 6, 6), (1, 1, 1))), LIVER, (slice(0, 6),) * 3)
    assert (found.count, found.largest) == (2, pytest.approx(2 / 3))


# References -----------------------------------------------------------------------------------------------------------


def test_references_are_of_structures_that_there_are() -> None:
    for name in {*hu_references().structures, *piece_references().structures}:
        assert VOCABULARY.knows(name)


def test_a_structure_that_was_measured_names_the_scans_and_one_that_was_not_the_vocabulary() -> None:
    measured, unmeasured = hu_range(LIVER, VOCABULARY), hu_range(VOCABULARY.id("left tibia"), VOCABULARY)
    assert measured is not None
    assert measured.source == "4 scans, vocabulary"
    assert unmeasured is not None
    assert unmeasured.source == "vocabulary"
    mean, sd = VOCABULARY.structure("left tibia").hu or (0, 0)
    assert unmeasured.usual == (mean - 2 * sd, mean + 2 * sd)
    assert hu_range(VOCABULARY.id("dummy1"), VOCABULARY) is None


def test_what_was_seen_in_a_scan_is_usual_and_what_is_usual_is_believable() -> None:
    for name, scans in hu_references().structures.items():
        found = hu_range(VOCABULARY.id(name), VOCABULARY)
        assert found is not None
        assert found.believable[0] < found.usual[0] <= scans.least <= scans.greatest <= found.usual[1]


def test_the_phase_of_an_aorta_narrows_what_is_usual() -> None:
    aorta = VOCABULARY.id("aorta")
    any_phase, contrast = hu_range(aorta, VOCABULARY), hu_range(aorta, VOCABULARY, "contrast")
    assert any_phase is not None
    assert contrast is not None
    assert contrast.mean > any_phase.mean
    assert "contrast" in contrast.source


# Labels alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["head", "chest", "abdomen", "lower"])
def test_a_phantom_passes(region: str) -> None:
    rng, grid = np.random.default_rng(3), Grid.centered((64, 56, 56), (5.0, 5.0, 5.0))
    labels = draw_phantom(region, grid, rng)
    assert judge_labels(labels).reasons == ()
    assert judge(render_phantom(labels, rng), labels).findings == ()


def test_an_organ_in_pieces_fails_and_a_users_own_is_told() -> None:
    labels = blocks(liver=slice(4, 10), body=slice(6, 8))
    labels.array[14:20, 14:20, 14:20] = LIVER
    assert failures(judge_labels(labels), "liver") == ["pieces"]
    given = judge_labels(labels, is_given=True)
    assert given.passed
    assert row(given, "liver").findings[0].level == "info"
    assert row(given, "liver").pieces == 2


@pytest.mark.parametrize("start", [2, 0])
def test_a_small_organ_on_a_coarse_grid_is_of_one_piece_too_whole_and_cut(start: int) -> None:
    """A network that has not learned enough leaves a voxel here and there."""
    labels = blocks(body=slice(0, 24))
    scattered = np.random.default_rng(0).choice(20**3, 150, replace=False)
    labels.array[tuple(start + axis for axis in np.unravel_index(scattered, (20,) * 3))] = LIVER
    assert failures(judge_labels(labels), "liver") == ["pieces"]
    assert row(judge_labels(labels), "liver").is_cut == (start == 0)


def test_a_tumour_that_does_not_touch_its_host_fails_and_without_any_host_is_told() -> None:
    inside, apart = blocks(liver=slice(4, 12), hepatic_tumor=slice(6, 9)), blocks(liver=slice(4, 9))
    apart.array[15:18, 15:18, 15:18] = TUMOUR
    assert judge_labels(inside).passed
    assert failures(judge_labels(apart), "hepatic tumor") == ["host"]
    alone = judge_labels(blocks(hepatic_tumor=slice(6, 9)))
    assert alone.passed
    assert "grows in liver" in alone.remarks[0]


def test_a_gallbladder_away_from_its_liver_is_told() -> None:
    fine = Grid.centered(GRID.shape, (4.0, 4.0, 4.0))
    remarks = []
    for liver in (slice(9, 19), slice(9, 17)):
        ids = blocks(liver=liver).array
        ids[9:18, 9:18, 19:22] = VOCABULARY.id("gallbladder")
        report = judge_labels(LabelMap(ids, fine))
        remarks.append([each.words for each in row(report, "gallbladder").findings if each.check == "neighbours"])
    assert remarks == [[], ["does not touch liver, as in 26 of 26 maps"]]


@pytest.mark.parametrize(("asked", "check"), [(520.0, None), (600.0, "info"), (900.0, "fail"), (0.0, "fail")])
def test_the_volume_that_was_asked_for_is_compared(asked: float, check: str | None) -> None:
    report = judge_labels(blocks(liver=slice(4, 12)), asked_ml={LIVER: asked})
    assert row(report, "liver").ml == pytest.approx(512)
    assert row(report, "liver").asked_ml == asked
    assert [each.level for each in row(report, "liver").findings] == ([] if check is None else [check])


def test_an_organ_is_asked_for_with_the_tumours_in_it() -> None:
    labels = blocks(liver=slice(4, 12))
    labels.array[5:10, 5:10, 5:10] = TUMOUR
    report = judge_labels(labels, asked_ml={LIVER: 512.0, TUMOUR: 125.0})
    assert [each.check for name in ("liver", "hepatic tumor") for each in row(report, name).findings] == []
    assert (row(report, "liver").ml, row(report, "liver").voxels) == (512.0, 512)
    lobes = blocks(left_lung_upper_lobe=slice(4, 9), right_lung_upper_lobe=slice(12, 18))
    report = judge_labels(lobes, asked_ml={VOCABULARY.id("lungs"): float(5**3 + 6**3)})
    assert not [reason for reason in report.reasons if "lungs" in reason and "asked" in reason]
    assert row(report, "lungs").ml == row(report, "lungs").asked_ml


def test_a_structure_that_was_asked_for_and_is_not_there_has_a_row_that_fails() -> None:
    report = judge_labels(blocks(liver=slice(4, 12)), asked_ml={SPLEEN: 20.0})
    assert failures(report, "spleen") == ["presence"]
    assert report.reasons == ("spleen: asked for 20 ml, not there",)


def test_what_no_body_has_fails_by_its_place() -> None:
    labels = blocks()
    big = Grid.centered(GRID.shape, (15.0, 15.0, 15.0))
    ids = labels.array.copy()
    ids[4:20, 4:20, 4:20] = SPLEEN
    assert "place" in failures(judge_labels(LabelMap(ids, big)), "spleen")


# With a CT ------------------------------------------------------------------------------------------------------------


def test_a_liver_as_dark_as_a_lung_fails_where_it_is_held_to_it() -> None:
    labels = blocks(liver=slice(5, 15))
    volume = shown(labels, liver=-700.0)
    assert judge(shown(labels, liver=70.0), labels).passed
    assert "hu" in failures(judge(volume, labels), "liver")
    lenient = judge(volume, labels, held_to=("spleen",))
    assert lenient.passed
    assert any("median" in remark for remark in lenient.remarks)
    assert judge(volume, labels).failing == (LIVER,)


def test_bones_that_do_not_stand_out_fail_by_their_edge() -> None:
    labels = blocks(left_femur=slice(8, 14))
    assert "edge" in failures(judge(shown(labels, left_femur=40.0), labels), "left femur")
    assert row(judge(shown(labels, left_femur=300.0), labels), "left femur").edge == pytest.approx(1, abs=0.3)


def test_zero_is_air_where_the_map_has_a_body_and_unknown_elsewhere() -> None:
    labels = blocks()
    full = Volume(np.full(GRID.shape, 40.0, np.float32) + np.arange(24, dtype=np.float32), GRID)
    assert "outside" in judge(full, labels).reasons[0]
    inside = blocks(liver=slice(6, 16)).array
    organs = LabelMap(np.where(inside == LIVER, np.uint8(LIVER), np.uint8(0)), GRID)
    assert judge(full, organs).passed
    assert not judge(full, organs, outside_is_air=True).passed


def test_an_image_of_one_value_fails_without_labels_too() -> None:
    flat = Volume(np.full(GRID.shape, 40.0, np.float32), GRID)
    assert judge(flat, None).reasons == ("every voxel is 40",)
    assert not judge(flat, None).is_repairable


def test_an_mr_is_not_judged_by_hounsfield_units() -> None:
    labels = blocks(liver=slice(5, 15))
    volume = shown(labels, liver=-700.0)
    report = judge(Volume(np.abs(volume.array), GRID, modality="mr"), labels, modality="mr")
    assert report.passed
    assert row(report, "liver").hu is None


def test_labels_off_the_grid_are_refused() -> None:
    labels = blocks()
    other = Volume(np.zeros(GRID.shape, np.float32) + np.arange(24), Grid.centered(GRID.shape, (3, 3, 3)))
    with pytest.raises(InvalidLabelsError, match="not on the grid"):
        judge(other, labels)


def test_a_report_comes_back_from_its_file_as_it_was() -> None:
    labels = blocks(liver=slice(5, 15))
    report = judge(shown(labels, liver=-700.0), labels)
    again = QualityReport.model_validate_json(report.model_dump_json())
    assert again == report
    assert not again.passed
    assert again.schema_version == 1


# Segmenters -----------------------------------------------------------------------------------------------------------


def test_a_segmenter_that_finds_half_of_an_organ_fails_it_and_one_that_does_not_know_it_fails_nothing() -> None:
    labels = blocks(liver=slice(12, 20), spleen=slice(3, 9))
    found = blocks(liver=slice(12, 15))
    measured = overlaps(labels, found)
    assert measured[LIVER].dice == pytest.approx(2 * 3**3 / (8**3 + 3**3))
    report = judge(shown(labels, liver=70.0, spleen=70.0), labels, overlaps=measured)
    assert failures(report, "liver") == ["dice"]
    assert row(report, "liver").segmented_ml == pytest.approx(27)
    assert failures(report, "spleen") == []
    assert "know it" in row(report, "spleen").findings[0].words


def test_a_command_is_a_segmenter(tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import sys, nibabel as nib, numpy as np\n"
        "image = nib.load(sys.argv[1])\n"
        "ids = np.where(image.get_fdata() > 0, 1, 0).astype(np.uint8)\n"
        "nib.save(nib.Nifti1Image(ids, image.affine), sys.argv[2])\n"
    )
    settings = QualitySettings(segmenter=f"{sys.executable} {tool} {{image}} {{labels}}")
    segmenter = segmenter_of(settings)
    assert isinstance(segmenter, Segmenter)
    labels = blocks()
    np.testing.assert_array_equal(segmenter(shown(labels)).array == LIVER, shown(labels).array.round() > 0)


def test_a_bundles_segmenter_judges_what_it_tells_apart(tmp_path: Path) -> None:
    told = segmented_classes({"body": (), "liver": (), "skeleton": ("bones",)}, VOCABULARY)
    torch.manual_seed(0)
    config = SegmenterConfig(classes=told, spacing_mm=10.0, window=(8, 8, 8), channels=(4, 8), num_res_blocks=(1, 1))
    info = BundleInfo(name="judge", licence="none", vocabulary_version="1.0")
    save_bundle(Bundle.of(info, {"segmenter": SegmentationUNet(config).eval()}), tmp_path / "judge")
    segmenter = segmenter_of(QualitySettings(segmenter=str(tmp_path / "judge")))
    assert isinstance(segmenter, Segmenter)
    labels = blocks(liver=slice(12, 20), left_femur=slice(3, 9))
    found = compared(segmenter, shown(labels, liver=70.0), labels)
    assert set(found) == {BODY, LIVER}  # of bones it knows the tissue alone


def test_a_segmenter_that_is_no_bundle_is_refused() -> None:
    with pytest.raises(InvalidBundleError, match="ct-smal"):
        segmenter_of(QualitySettings(segmenter="ct-smal"))
    with pytest.raises(InvalidBundleError, match="has no segmenter"):
        segmenter_of(QualitySettings(segmenter="ct-small"))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"\{image\} and \{labels\}"):
        QualitySettings(segmenter="TotalSegmentator -i {image}")
    with pytest.raises(ValidationError, match="max_tries"):
        QualitySettings(max_tries=0)
    assert QualitySettings(on_failure="keep", max_tries=5).tries == 1
