"""Whose numbers a label map uses: the lists of others, files that say it, what is out of place, what is refused."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maisi.anatomy.numberings import Numbering, find_numbering, meaning, meanings, numbering_names
from maisi.anatomy.places import Footprint, footprints, misplacements
from maisi.anatomy.vocabulary import extended, load_vocabulary
from maisi.data.cases import own_labels
from maisi.data.door import open_labels
from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError, InvalidLabelsError
from maisi.phantom.draw import draw_phantom
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.volume import LabelMap

vocabulary = load_vocabulary()
GRID = Grid.axis_aligned((60, 48, 40), (5.0, 5.0, 5.0), (-150, -100, -80))

# Ellipsoids of a trunk: name, centre and radii in mm (RAS), the later over the earlier.
TRUNK = (
    ("right lung upper lobe", (65, 10, 65), (45, 55, 45)),
    ("left lung upper lobe", (-65, 10, 65), (45, 55, 45)),
    ("heart", (-15, 35, 60), (32, 30, 30)),
    ("liver", (65, 5, -25), (50, 50, 35)),
    ("spleen", (-90, -10, -20), (25, 30, 28)),
    ("vertebrae L1", (0, -55, -10), (18, 18, 15)),
)


def trunk(ids: dict[str, int] | None = None) -> LabelMap:
    """The trunk with these numbers; with ours without."""
    array = np.zeros(GRID.shape, np.uint8)
    world = np.moveaxis(np.indices(GRID.shape), 0, -1) * 5.0 + np.array(GRID.origin)
    for name, centre, radii in TRUNK:
        inside = (((world - centre) / np.array(radii)) ** 2).sum(-1) < 1
        array[inside] = vocabulary.id(name) if ids is None else ids.get(name, 0)
    return LabelMap(array, GRID)


def ids_in(numbering: str) -> dict[str, int]:
    """The id that a numbering gives to each of our structures which it has."""
    theirs = find_numbering(numbering, vocabulary)
    ours = {id: meaning(name, vocabulary) for id, name in theirs.names.items()}
    return {vocabulary.name(found): id for id, found in ours.items() if found is not None and found > 0}


def opened(path: Path, labels: LabelMap, numbering: str | None = None) -> tuple[LabelMap, FileReport]:
    write_labels(labels, path / "labels.nii.gz")
    return open_labels(path / "labels.nii.gz", ReadOptions(numbering=numbering))


def warnings(report: FileReport) -> list[str]:
    return [f"{finding.found}; {finding.decided}" for finding in report.findings if finding.is_warning]


# The lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbering", "count", "spots"),
    [
        ("totalsegmentator", 117, {1: "spleen", 5: "liver", 27: "vertebrae L5", 31: "vertebrae L1", 50: "vertebrae C1",
                                   51: "heart", 52: "aorta", 90: "brain", 92: "left rib 1", 115: "right rib 12",
                                   117: "costal cartilages"}),
        ("totalsegmentator-v1", 104, {7: "aorta", 18: "vertebrae L5", 41: "vertebrae C1", 42: "esophagus",
                                      44: "heart", 58: "left rib 1", 81: "right rib 12", 104: "bladder"}),
        ("amos", 15, {5: "esophagus", 6: "liver", 9: "inferior vena cava", 10: "pancreas", 14: "bladder"}),
        ("btcv", 13, {6: "liver", 10: "portal vein and splenic vein", 11: "pancreas", 13: "left adrenal gland"}),
        ("word", 16, {1: "liver", 3: "left kidney", 11: "small bowel", 13: "colon", 16: "right femur"}),
        ("vista3d", 132, {1: "liver", 14: "left kidney", 20: "lungs", 21: "skeleton", 132: "airway"}),
        ("maisi", len(vocabulary.ids), {1: "liver", 200: "body"}),
    ],
)  # fmt: skip
def test_a_numbering_has_all_its_classes_where_its_owner_has_them(
    numbering: str, count: int, spots: dict[int, str]
) -> None:
    found = find_numbering(numbering, vocabulary)
    assert len(found.names) == count
    assert {id: vocabulary.name(meaning(found.names[id], vocabulary) or 0) for id in spots} == spots


@pytest.mark.parametrize("numbering", numbering_names())
def test_every_name_of_a_numbering_is_known_or_listed_as_without_a_place(numbering: str) -> None:
    found = find_numbering(numbering, vocabulary)
    assert [found.names[id] for id, ours in meanings(found, vocabulary).items() if ours is None] == []


@pytest.mark.parametrize(
    ("numbering", "ours"),
    [
        ("msd-task03", ["liver", "hepatic tumor"]),
        ("msd-task06", ["lung tumor"]),
        ("msd-task07", ["pancreas", "pancreatic tumor"]),
        ("msd-task08", ["hepatic vessel", "hepatic tumor"]),
        ("msd-task09", ["spleen"]),
        ("msd-task10", ["colon cancer primaries"]),
        ("lits", ["liver", "hepatic tumor"]),
        ("kits", ["no place", "kidney tumor", "no place"]),
        ("abdomenct-1k", ["liver", "no place", "spleen", "pancreas"]),
        ("ct-org", ["liver", "bladder", "lungs", "no place", "skeleton", "brain"]),
        ("ctpelvic1k", ["sacrum", "left hip", "right hip", "skeleton"]),
    ],
)
def test_labels_of_data_sets_become_ours_and_kidneys_without_a_side_become_no_kidney(
    numbering: str, ours: list[str]
) -> None:
    found = meanings(find_numbering(numbering, vocabulary), vocabulary)
    assert ["no place" if id == -1 else vocabulary.name(id or 0) for id in found.values()] == ours


def test_verse_numbers_vertebrae_from_the_top() -> None:
    found = meanings(find_numbering("verse", vocabulary), vocabulary)
    spots = {1: "vertebrae C1", 7: "vertebrae C7", 8: "vertebrae T1", 19: "vertebrae T12", 20: "vertebrae L1"}
    spots |= {24: "vertebrae L5", 26: "sacrum"}
    assert {id: vocabulary.name(found[id] or 0) for id in spots} == spots
    assert [found[id] for id in (25, 27, 28)] == [-1, -1, -1]


def named(title: str, *names: str) -> list[int | None]:
    numbering = Numbering(name="x", title=title, names=dict(enumerate(names, start=1)))
    return list(meanings(numbering, vocabulary).values())


def test_a_word_that_tells_no_organ_is_of_the_one_organ_in_its_map_or_else_in_its_title() -> None:
    assert named("", "liver", "cancer", "background") == [vocabulary.id("liver"), vocabulary.id("hepatic tumor"), 0]
    assert named("the names that Task06_Lung gives lung_001.nii.gz", "cancer") == [vocabulary.id("lung tumor")]
    assert named("of the lung", "liver", "tumor")[1] == vocabulary.id("hepatic tumor")


def test_a_word_that_tells_no_organ_stays_unknown_among_several_and_without_any() -> None:
    assert named("liver", "liver", "spleen", "tumor")[2] is None
    assert named("liver and lung", "tumor") == [None]
    assert named("", "tumor") == [None]
    assert named("lung", "vessel") == [None]


def test_a_tumour_that_was_taken_by_its_organ_is_told(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"1": "liver", "2": "cancer"}')
    ids = trunk({"liver": 1}).array
    ids[np.nonzero(ids)[0][0], np.nonzero(ids)[1][0], np.nonzero(ids)[2][0]] = 2
    labels, report = opened(tmp_path, LabelMap(ids, GRID), str(tmp_path / "names.json"))
    assert (labels.array[ids == 2] == vocabulary.id("hepatic tumor")).all()
    assert any("taken cancer as hepatic tumor" in finding.decided for finding in report.findings)


def test_hips_of_ctpelvic1k_that_lie_the_other_way_are_warned_of(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array[38:50, 15:30, 5:30], array[10:22, 15:30, 5:30], array[26:34, 5:15, 8:28] = (
        3,
        2,
        1,
    )  # RAS: x grows to the right
    _, report = opened(tmp_path, LabelMap(array, GRID), "ctpelvic1k")
    assert warnings(report) == []
    swapped = np.choose(array, [0, 1, 3, 2]).astype(np.uint8)
    _, report = opened(tmp_path, LabelMap(swapped, GRID), "ctpelvic1k")
    assert "hip" in warnings(report)[0]


def test_version_2_of_totalsegmentator_knows_no_name_without_a_place_here() -> None:
    names = find_numbering("totalsegmentator", vocabulary).names.values()
    assert len({meaning(name, vocabulary) for name in names}) == 117
    assert -1 not in {meaning(name, vocabulary) for name in names}


def test_totalsegmentators_ids_and_names_agree_with_a_real_label_map(shared_cases) -> None:  # type: ignore[no-untyped-def]
    case = next(case for case in shared_cases if case["id"] == "lidc0001_totalseg")
    ours = find_numbering("totalsegmentator", vocabulary).names
    told = {int(id): name for id, name in case["label_names"].items() if int(id) <= 116}
    assert {id: ours[id] for id in told} == told


def test_a_real_label_map_by_totalsegmentators_numbers_is_the_one_by_ours(shared_data, shared_cases) -> None:  # type: ignore[no-untyped-def]
    case = next(case for case in shared_cases if case["id"] == "totalseg_example_ct")
    names = {int(id): name for id, name in case["label_names"].items()}
    theirs, ours = (read_labels(shared_data / case[key]) for key in ("labels", "labels_maisi"))
    own = own_labels(Case(id="a", labels=shared_data / case["labels"], label_names=case["label_names"]))
    assert own is not None
    labelled = theirs.array != 0
    assert set(np.unique(theirs.array)) - {0} <= set(names)
    assert (own.array[labelled] == ours.array[labelled]).all()


# Whose numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbering", ["totalsegmentator", "totalsegmentator-v1", "vista3d", "maisi"])
def test_named_numbers_become_ours_without_a_warning(tmp_path: Path, numbering: str) -> None:
    labels, report = opened(tmp_path, trunk(ids_in(numbering)), numbering)
    assert np.array_equal(labels.array, trunk().array)
    assert labels.array.dtype == np.uint8
    assert warnings(report) == []


@pytest.mark.parametrize("numbering", ["amos", "btcv", "word"])
def test_named_numbers_of_organs_become_ours(tmp_path: Path, numbering: str) -> None:
    labels, report = opened(tmp_path, trunk(ids_in(numbering)), numbering)
    kept = [vocabulary.id(name) for name in ("liver", "spleen")]
    assert np.array_equal(labels.array, np.where(np.isin(trunk().array, kept), trunk().array, 0))
    assert warnings(report) == []


def test_our_own_numbers_are_taken_without_a_word(tmp_path: Path) -> None:
    labels, report = opened(tmp_path, trunk())
    assert np.array_equal(labels.array, trunk().array)
    assert report.findings == ()


@pytest.mark.parametrize("numbering", ["totalsegmentator", "totalsegmentator-v1", "btcv", "amos"])
def test_numbers_of_others_taken_as_ours_are_warned_of_with_what_is_out_of_place(
    tmp_path: Path, numbering: str
) -> None:
    labels = draw_phantom("abdomen", Grid.centered((80, 64, 64), (5.0, 5.0, 5.0)), np.random.default_rng(3))
    ids = {vocabulary.id(name): id for name, id in ids_in(numbering).items()}
    table = np.array([ids.get(id, 0) for id in range(256)], np.uint8)
    _, report = opened(tmp_path, LabelMap(table[labels.array], labels.grid))
    (warning,) = warnings(report)
    assert "out of place by the numbering maisi" in warning
    assert f"--numbering {numbering}" in warning
    _, named = opened(tmp_path, LabelMap(table[labels.array], labels.grid), numbering)
    assert warnings(named) == []


def test_a_mirrored_map_is_warned_of_and_no_numbering_is_proposed(tmp_path: Path) -> None:
    mirrored = LabelMap(
        np.ascontiguousarray(trunk().array[::-1]), Grid.axis_aligned(GRID.shape, GRID.spacing, (-145, -100, -80))
    )
    _, report = opened(tmp_path, mirrored)
    (warning,) = warnings(report)
    assert "liver" in warning
    assert "no numbering known here fits better" in warning


def test_one_organ_on_the_other_side_of_a_whole_image_is_warned_of_with_the_numberings_that_fit(tmp_path: Path) -> None:
    spleen_as_1 = np.where(trunk().array == vocabulary.id("spleen"), 1, 0).astype(np.uint8)
    _, report = opened(tmp_path, LabelMap(spleen_as_1, GRID))
    (warning,) = warnings(report)
    assert "liver 88 mm left of the middle of the image" in warning
    assert "--numbering totalsegmentator" in warning
    _, named = opened(tmp_path, LabelMap(spleen_as_1, GRID), "totalsegmentator")
    assert warnings(named) == []


def test_one_organ_in_a_narrow_image_may_lie_anywhere(tmp_path: Path) -> None:
    spleen_as_1 = np.where(trunk().array == vocabulary.id("spleen"), 1, 0).astype(np.uint8)[:40]
    _, report = opened(tmp_path, LabelMap(spleen_as_1, Grid.axis_aligned((40, 48, 40), GRID.spacing, GRID.origin)))
    assert warnings(report) == []


@pytest.mark.parametrize("region", ["head", "neck", "head-neck", "chest", "abdomen", "lower", "limbs"])
def test_nothing_is_out_of_place_in_a_phantom(region: str) -> None:
    labels = draw_phantom(region, Grid.centered((80, 64, 64), (5.0, 5.0, 5.0)), np.random.default_rng(7))
    assert misplacements(footprints(labels), vocabulary) == ()


@pytest.mark.parametrize(
    ("one", "at", "other", "at_other", "words"),
    [
        (
            "right lung upper lobe",
            (65, 40, 200),
            "vertebrae T5",
            (90, -25, 200),
            "right lung upper lobe 25 mm left of vertebrae T5",
        ),
        ("liver", (-70, 60, 20), "spleen", (90, 0, 20), "liver 160 mm left of spleen"),
        ("left femur", (-100, 20, 300), "lungs", (0, 40, 150), "left femur 150 mm above lungs"),
        ("vertebrae T5", (0, -25, 190), "sternum", (0, -80, 190), "vertebrae T5 55 mm in front of sternum"),
    ],
)
def test_a_structure_where_it_cannot_be_is_told_in_words(
    one: str, at: tuple[float, ...], other: str, at_other: tuple[float, ...], words: str
) -> None:
    found = {}
    for name, (x, y, z) in ((one, at), (other, at_other)):
        id = vocabulary.id(name)
        found[id] = Footprint(vocabulary.places_by_id[id].ml[0], (x, y, z))
    assert [each.words for each in misplacements(found, vocabulary)] == [words]


def test_a_structure_larger_than_any_is_told() -> None:
    found = {vocabulary.id("right scapula"): Footprint(1500.0, (0.0, 60.0, 460.0))}
    assert [each.words for each in misplacements(found, vocabulary)] == ["right scapula of 1500 ml"]


def test_numbers_that_maisi_never_fills_are_told() -> None:
    (found,) = misplacements({2: Footprint(150.0, (0.0, 0.0, 0.0))}, vocabulary)
    assert "dummy1 (2), which MAISI reserves" in found.words


def test_real_label_maps_have_nothing_out_of_place_and_their_mirror_images_have(shared_data) -> None:  # type: ignore[no-untyped-def]
    paths = sorted((shared_data / "label_maps").glob("*/labels_maisi.nii.gz"))
    assert len(paths) == 82
    seen, unseen = {}, []
    for path in [*paths[::8], *(path for path in paths if path.parent.name in ("totalseg_s0004", "totalseg_s0009"))]:
        found = footprints(read_labels(path))
        seen[path.parent.name] = [each.words for each in misplacements(found, vocabulary)]
        mirrored = {
            id: Footprint(each.ml, (-each.middle[0], *each.middle[1:]), each.is_cut) for id, each in found.items()
        }
        if not misplacements(mirrored, vocabulary):
            unseen.append(path.parent.name)
    assert {name: words for name, words in seen.items() if words} == {}
    assert all(name.startswith("verse") for name in unseen), unseen  # vertebrae alone are their own mirror image


# What has no name, or no place ----------------------------------------------------------------------------------------


def test_an_id_without_a_name_is_refused_by_number_count_and_place(tmp_path: Path) -> None:
    labels = trunk()
    labels.array[5, 6, 7], labels.array[6, 6, 7] = 190, 190
    with pytest.raises(InvalidLabelsError, match=r"190, 2 voxels, one at \(-125\.0, -70\.0, -45\.0\) mm"):
        opened(tmp_path, labels)
    labels = trunk(ids_in("totalsegmentator"))
    labels.array[5, 6, 7] = 118
    with pytest.raises(InvalidLabelsError, match="118, 1 voxels"):
        opened(tmp_path, labels, "totalsegmentator")


def test_the_refusal_of_an_id_proposes_the_numbering_that_fits(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabelsError, match="--numbering totalsegmentator"):
        opened(tmp_path, trunk(ids_in("totalsegmentator")), "btcv")


def test_names_without_a_place_are_told_and_leave_no_hole_in_a_body(tmp_path: Path) -> None:
    numbering = tmp_path / "names.json"
    numbering.write_text(json.dumps({"1": "liver", "2": "face", "9": "body"}))
    ids = np.zeros(GRID.shape, np.uint8)
    ids[10:40, 10:40, 10:30], ids[12:20, 12:20, 12:20], ids[30:34, 30:34, 12:20] = 9, 1, 2
    labels, report = opened(tmp_path, LabelMap(ids, GRID), str(numbering))
    assert (labels.array[ids == 2] == vocabulary.id("body")).all()
    assert any("2 (face), 128 voxels" in warning and "taken as body" in warning for warning in warnings(report))
    ids[ids == 9] = 0
    labels, report = opened(tmp_path, LabelMap(ids, GRID), str(numbering))
    assert (labels.array[ids == 2] == 0).all()
    assert any("face" in warning and "without a label" in warning for warning in warnings(report))


def test_a_name_that_nobody_knows_is_refused_until_the_file_says_what_to_do_with_it(tmp_path: Path) -> None:
    numbering = tmp_path / "names.yaml"
    ids = np.where(trunk().array == vocabulary.id("liver"), np.uint8(7), 0).astype(np.uint8)
    numbering.write_text("7: flux capacitor\n")
    with pytest.raises(InvalidLabelsError, match=r"7 \(flux capacitor\), \d+ voxels, one at"):
        opened(tmp_path, LabelMap(ids, GRID), str(numbering))
    numbering.write_text("7: background\n")
    labels, report = opened(tmp_path, LabelMap(ids, GRID), str(numbering))
    assert not labels.array.any()
    assert any("left out" in finding.decided for finding in report.findings)


# Files that say it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.json", '{"5": "liver", "7": "spleen"}'),
        ("names.json", '{"liver": 5, "spleen": 7}'),
        ("names.yaml", "5: liver\n7: spleen\n"),
        ("dataset.json", '{"name": "x", "labels": {"background": 0, "liver": 5, "spleen": 7}}'),
        ("dataset.json", '{"modality": {"0": "CT"}, "labels": {"0": "background", "5": "liver", "7": "spleen"}}'),
    ],
)
def test_a_file_names_the_ids_in_either_direction(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    labels, report = opened(tmp_path, trunk({"liver": 5, "spleen": 7}), str(tmp_path / name))
    kept = [vocabulary.id(name) for name in ("liver", "spleen")]
    assert np.array_equal(labels.array, np.where(np.isin(trunk().array, kept), trunk().array, 0))
    assert warnings(report) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ("[1, 2]", "a list where the names"),
        ('{"labels": {"whole tumor": [1, 2]}}', "whole tumor'?: a list"),
        ('{"1": "liver", "spleen": 1}', "more than one name for 1"),
        ('{"1": "liver", "1": "spleen"}', "more than one entry for 1"),
        ('{"labels": {"liver": 1, "liver": 2}}', "more than one entry for liver"),
        ('{"1": 2}', "the entry '1': 2"),
        ('{"1": ""}', "the entry"),
        ('{"70000": "liver"}', "70000"),
        ("{}", "a dict where"),
        ('{"1": null}', "the entry '1': None"),
    ],
)
def test_a_file_that_names_no_ids_is_refused_with_what_it_holds(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(InvalidConfigError, match=said):
        find_numbering(str(tmp_path / "names.json"), vocabulary)


@pytest.mark.parametrize(
    "content", ["1: [", "1: !!python/name:os.system", "a: &a [*a]", "2001-99-99: liver", "\x00", "1: liver\n1: spleen"]
)
def test_yaml_that_names_no_ids_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.yaml").write_text(content)
    with pytest.raises(InvalidConfigError, match="not a numbering"):
        find_numbering(str(tmp_path / "names.yaml"), vocabulary)


def test_an_unknown_numbering_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(InvalidConfigError, match=r"did you mean totalsegmentator\?.*maisi, vista3d"):
        find_numbering("totalsegmentor", vocabulary)


# Other forms, through the door ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbering", [None, "totalsegmentator", "maisi"])
def test_a_folder_of_totalsegmentators_masks_comes_in_our_ids(tmp_path: Path, numbering: str | None) -> None:
    folder = tmp_path / "segmentations"
    folder.mkdir()
    for name, _theirs in (
        ("liver", "liver"),
        ("spleen", "spleen"),
        ("heart", "heart"),
        ("vertebrae L1", "vertebrae_L1"),
    ):
        mask = (trunk().array == vocabulary.id(name)).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, GRID.affine), folder / f"{name.replace(' ', '_')}.nii.gz")
    labels, report = open_labels(folder, ReadOptions(numbering=numbering))
    lobes = [vocabulary.id(f"{side} lung upper lobe") for side in ("left", "right")]
    assert np.array_equal(labels.array, np.where(np.isin(trunk().array, lobes), 0, trunk().array))
    assert warnings(report) == []


def test_a_mask_of_a_name_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "segmentations"
    folder.mkdir()
    mask = (trunk().array == vocabulary.id("liver")).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, GRID.affine), folder / "flux_capacitor.nii.gz")
    with pytest.raises(InvalidLabelsError, match="flux_capacitor"):
        open_labels(folder)


def test_the_names_in_a_header_count_unless_a_numbering_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(trunk({"liver": 5, "spleen": 1}).array, GRID.affine)
    table = '<Label Key="5">liver</Label><Label Key="1">spleen</Label>'
    text = f"<CaretExtension><LabelTable>{table}</LabelTable></CaretExtension>"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    nib.save(image, tmp_path / "labels.nii.gz")
    labels, report = open_labels(tmp_path / "labels.nii.gz")
    assert (labels.array == vocabulary.id("liver")).sum() == (trunk().array == vocabulary.id("liver")).sum()
    assert "the names in its header" in report.findings[0].found
    as_ours, _ = open_labels(tmp_path / "labels.nii.gz", ReadOptions(numbering="maisi"))
    assert set(np.unique(as_ours.array)) == {0, 1, 5}


def test_one_hot_channels_take_the_ids_of_the_numbering(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"background": 0, "spleen": 1, "liver": 2}')
    ids = trunk({"liver": 2, "spleen": 1}).array
    channels = np.stack([ids == id for id in (0, 1, 2)], axis=-1).astype(np.uint8)
    nib.save(nib.Nifti1Image(channels, GRID.affine), tmp_path / "labels.nii.gz")
    labels, _ = open_labels(tmp_path / "labels.nii.gz", ReadOptions(numbering=str(tmp_path / "names.json")))
    kept = [vocabulary.id(name) for name in ("liver", "spleen")]
    assert np.array_equal(labels.array, np.where(np.isin(trunk().array, kept), trunk().array, 0))


def test_classes_that_a_bundle_declares_are_taken(tmp_path: Path) -> None:
    labels = trunk()
    labels.array[5, 6, 7] = 160
    write_labels(labels, tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match="160"):
        open_labels(tmp_path / "labels.nii.gz")
    taken, _ = open_labels(tmp_path / "labels.nii.gz", vocabulary=extended(vocabulary, {160: "stent"}))
    assert np.array_equal(taken.array, labels.array)


# Cases of a manifest --------------------------------------------------------------------------------------------------


def case_of(folder: Path, **names: str) -> Case:
    write_labels(trunk({"liver": 1, "spleen": 2, "heart": 3}), folder / "labels.nii.gz")
    return Case(id="a", labels=folder / "labels.nii.gz", label_names={key[1:]: name for key, name in names.items()})


def test_a_case_loses_no_label_silently(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabelsError, match=r"3, \d+ voxels"):
        own_labels(case_of(tmp_path, _1="liver", _2="spleen"))
    with pytest.raises(InvalidLabelsError, match="flux capacitor"):
        own_labels(case_of(tmp_path, _1="liver", _2="spleen", _3="flux capacitor"))


def test_a_case_may_leave_out_what_its_manifest_calls_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = own_labels(case_of(tmp_path, _1="liver", _2="background", _3="celiac_trunk"))
    assert labels is not None
    assert set(np.unique(labels.array)) == {0, vocabulary.id("liver")}
    assert "celiac_trunk" in caplog.text


def test_a_case_may_leave_out_names_and_numbers_that_are_listed(tmp_path: Path) -> None:
    case = case_of(tmp_path, _1="liver", _2="flux capacitor")
    labels = own_labels(case, drop=("flux capacitor", "3"))
    assert labels is not None
    assert set(np.unique(labels.array)) == {0, vocabulary.id("liver")}
    assert own_labels(case, drop=("flux capacitor", "3", "liver")) is None


def test_a_case_with_names_for_what_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="'x1'"):
        own_labels(case_of(tmp_path, _x1="liver"))


def test_all_names_of_the_shared_manifest_have_a_meaning(shared_cases) -> None:  # type: ignore[no-untyped-def]
    names = {name for case in shared_cases for name in case.get("label_names", {}).values()}
    assert sorted(name for name in names if meaning(name, vocabulary) is None) == []
