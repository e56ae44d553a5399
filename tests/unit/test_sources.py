"""Every layout of a data set gives its cases, and says what it passed over."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_slices import header, write_series
from pydicom.dataset import FileDataset

from maisi.anatomy.codes import segments_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import Case, read_manifest, write_manifest
from maisi.data.sources.find import find_cases
from maisi.data.sources.raw import RawLabels
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

GRID = Grid.centered((8, 8, 8), (2.0, 2.0, 2.0))


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(np.linspace(-1000, 900, 512, dtype=np.float32).reshape(8, 8, 8), GRID), path)
    return path


def labels(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(LabelMap(np.ones((8, 8, 8), np.uint8), GRID), path)
    return path


def segments(path: Path) -> Path:
    """The same labels as 3D Slicer writes them."""
    array = np.ones((8, 8, 8), np.uint8)
    write_labels(LabelMap(array, GRID), path, segments=segments_of([1], load_vocabulary()))
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_nrrd_and_metaimage_are_images_and_labels_too(tmp_path: Path) -> None:
    image(tmp_path / "a.nrrd"), segments(tmp_path / "a.seg.nrrd")
    image(tmp_path / "p1" / "ct.mha"), labels(tmp_path / "p1" / "labels.nrrd")
    image(tmp_path / "B.MHA".lower()).rename(tmp_path / "B.MHA"), labels(tmp_path / "B_seg.nii.gz")
    (tmp_path / "scan.mgz").touch()
    found = find_cases(tmp_path)
    assert {case.id: (case.image.name, [each.path.name for each in case.labels]) for case in found.cases} == {
        "B": ("B.MHA", ["B_seg.nii.gz"]),
        "a": ("a.nrrd", ["a.seg.nrrd"]),
        "p1": ("ct.mha", ["labels.nrrd"]),
    }
    assert [each.path.name for each in found.passed_over if each.is_unread] == ["scan.mgz"]


def test_a_folder_of_images_pairs_images_with_labels_by_the_usual_names(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz"), labels(tmp_path / "a_seg.nii.gz")
    image(tmp_path / "p1" / "ct.nii.gz"), labels(tmp_path / "p1" / "labels_maisi.nii.gz")
    image(tmp_path / "imagesTr" / "b.nii"), labels(tmp_path / "labelsTr" / "b.nii")
    image(tmp_path / "sub-07" / "anat" / "sub-07_ct.nii.gz")
    image(tmp_path / "p2" / "ct.nii.gz")
    for name in ("liver", "spleen"):
        labels(tmp_path / "p2" / "segmentations" / f"{name}.nii.gz")
    image(tmp_path / "__MACOSX" / "a.nii.gz"), image(tmp_path / "._a.nii.gz")
    image(tmp_path / "volume-12.nii"), labels(tmp_path / "segmentation-12.nii")
    labels(tmp_path / "orphan_mask.nii.gz")
    found = find_cases(tmp_path)
    assert found.layout == "image folder"
    assert [case.id for case in found.cases] == ["12", "a", "b", "p1", "p2", "sub-07_sub-07"]
    by_id = {case.id: case for case in found.cases}
    assert by_id["12"].labels == (RawLabels(tmp_path / "segmentation-12.nii"),)
    assert by_id["a"].labels == (RawLabels(tmp_path / "a_seg.nii.gz"),)
    assert by_id["b"].labels == (RawLabels(tmp_path / "labelsTr" / "b.nii"),)
    assert by_id["p1"].labels == (RawLabels(tmp_path / "p1" / "labels_maisi.nii.gz", numbering="maisi"),)
    assert by_id["p2"].labels == (RawLabels(tmp_path / "p2" / "segmentations"),)
    assert [by_id[id].patient for id in ("a", "p1", "sub-07_sub-07")] == ["a", "p1", "sub-07"]
    assert [each.path.name for each in found.passed_over] == ["orphan_mask.nii.gz"]


def test_scans_in_one_folder_are_of_one_patient_unless_it_is_a_collection(tmp_path: Path) -> None:
    """Two phases of a patient must not come to lie on two sides of a split."""
    for name in ("arterial", "venous"):
        image(tmp_path / "anna" / f"{name}.nii.gz")
    for k in range(13):
        image(tmp_path / "batch" / f"s{k:02d}.nii.gz")
    image(tmp_path / "imagesTr" / "x.nii.gz")
    image(tmp_path / "top.nii.gz")
    patients = {case.id: case.patient for case in find_cases(tmp_path).cases}
    assert patients["anna_arterial"] == patients["anna_venous"] == "anna"
    assert len({patients[f"batch_s{k:02d}"] for k in range(13)}) == 13
    assert (patients["x"], patients["top"]) == ("x", "top")


def test_a_datalist_keeps_its_splits_and_holds_out_fold_0(tmp_path: Path) -> None:
    entries = [{"image": f"{n}.nii.gz", "label": f"{n}_l.nii.gz", "fold": n % 2} for n in range(3)]
    content = {"training": entries, "testing": [{"image": "t.nii.gz"}, "u.nii.gz", {"image": ["a", "b"]}]}
    found = find_cases(write_json(tmp_path / "list.json", content))
    assert found.layout == "MONAI datalist"
    assert [(case.id, case.split) for case in found.cases] == [
        ("0", "validation"),
        ("1", "training"),
        ("2", "validation"),
        ("t", "testing"),
        ("u", "testing"),
    ]
    assert found.cases[0].image == tmp_path / "0.nii.gz"
    assert found.cases[0].labels == (RawLabels(tmp_path / "0_l.nii.gz"),)
    assert "several channels" in found.passed_over[0].why


def test_a_decathlon_dataset_gives_the_names_of_its_ids(tmp_path: Path) -> None:
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/liver_0.nii.gz", "label": "./labelsTr/liver_0.nii.gz"}],
        "test": ["./imagesTs/liver_9.nii.gz"],
    }
    write_json(tmp_path / "Task03_Liver" / "dataset.json", content)
    found = find_cases(tmp_path / "Task03_Liver")
    assert found.layout == "MSD dataset"
    first, held_out = found.cases
    assert first.labels[0].names == {1: "liver", 2: "cancer"}
    assert (first.id, first.modality, first.dataset, first.split) == ("liver_0", "ct", "Task03_Liver", None)
    assert (held_out.id, held_out.split, held_out.labels) == ("liver_9", "testing", ())


def test_an_nnunet_dataset_takes_the_ct_of_several_channels(tmp_path: Path) -> None:
    root = tmp_path / "Dataset007_Mine"
    for channel in ("0000", "0001"):
        image(root / "imagesTr" / f"case_1_{channel}.nii.gz")
    labels(root / "labelsTr" / "case_1.nii.gz")
    image(root / "imagesTs" / "case_2_0001.nii.gz")
    content = {"channel_names": {"0": "PET", "1": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": 2}}
    write_json(root / "dataset.json", content | {"file_ending": ".nii.gz"})
    found = find_cases(root)
    assert found.layout == "nnU-Net raw"
    assert [(case.id, case.image.name, case.split) for case in found.cases] == [
        ("case_1", "case_1_0001.nii.gz", None),
        ("case_2", "case_2_0001.nii.gz", "testing"),
    ]
    names = {1: "liver", 2: "ignore"}
    assert found.cases[0].labels == (RawLabels(root / "labelsTr" / "case_1.nii.gz", names=names),)
    assert [each.path.name for each in found.passed_over] == ["case_1_0000.nii.gz"]
    write_json(root / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {"background": 0, "both": [1, 2]}})
    with pytest.raises(InvalidConfigError, match="'both' is a region of several ids"):
        find_cases(root)


def test_a_totalsegmentator_dataset_has_split_age_and_sex_from_its_table(tmp_path: Path) -> None:
    for name in ("s0001", "s0002"):
        image(tmp_path / name / "ct.nii.gz")
        labels(tmp_path / name / "segmentations" / "liver.nii.gz")
    (tmp_path / "s0003").mkdir()
    (tmp_path / "meta.csv").write_text("image_id;age;gender;split\ns0001;54;m;val\ns0002;;f;train\n")
    found = find_cases(tmp_path)
    assert found.layout == "TotalSegmentator dataset"
    first, second = found.cases
    assert (first.split, first.attributes) == ("validation", {"age": "54", "gender": "m"})
    assert (second.split, second.attributes) == ("training", {"gender": "f"})
    assert first.labels == (RawLabels(tmp_path / "s0001" / "segmentations"),)
    assert [each.path.name for each in found.passed_over] == ["s0003"]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.jsonl"])
def test_our_manifest_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    cases = [
        Case(id="a", image=Path("a.nii.gz"), labels=Path("l.nii.gz"), label_names={"1": "liver"}, split="validation"),
        Case(id="b", labels_maisi=Path("b.nii.gz")),
    ]
    if name.endswith("l"):
        write_manifest(cases, tmp_path / name)
    else:
        write_json(tmp_path / name, {"cases": [json.loads(case.model_dump_json()) for case in cases]})
    found = find_cases(tmp_path)
    assert found.layout == "maisi manifest"
    (case,) = found.cases
    assert (case.id, case.image, case.split) == ("a", tmp_path / "a.nii.gz", "validation")
    assert case.labels == (RawLabels(tmp_path / "l.nii.gz", names={1: "liver"}),)
    assert found.passed_over[0].why == "case b has no image"


def test_a_manifest_of_json_lines_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    cases = (
        Case(id="a", image=tmp_path / "a.nii.gz", span=("chest", "abdomen"), attributes={"sex": "f"}, modality="mr"),
        Case(id="b", labels_maisi=tmp_path / "b.nii.gz", sums={"labels_maisi": "0" * 64}, split="testing"),
    )
    write_manifest(cases, tmp_path / "manifest.jsonl")
    assert read_manifest(tmp_path / "manifest.jsonl") == read_manifest(tmp_path) == cases
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(InvalidConfigError, match="is not a manifest"):
        read_manifest(tmp_path)


def test_what_has_no_layout_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nothing at"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InvalidRequestError, match="has no layout that is known here; accepted: a folder of NIfTI"):
        find_cases(tmp_path)
    with pytest.raises(InvalidRequestError, match="unknown layout 'bids'; accepted: manifest, nnunet"):
        find_cases(tmp_path, "bids")
    labels(tmp_path / "a_seg.nii.gz")
    with pytest.raises(
        InvalidRequestError, match=r"no case in .*; passed over: a_seg.nii.gz \(labels without an image"
    ):
        find_cases(tmp_path)
    (tmp_path / "broken.json").write_text('{"training": [')
    with pytest.raises(InvalidConfigError, match="no JSON file"):
        find_cases(tmp_path / "broken.json")


def test_a_dicom_tree_gives_a_case_for_each_series_with_what_its_tags_say(tmp_path: Path) -> None:
    def of(patient: str) -> Callable[[FileDataset], None]:
        def change(dataset: FileDataset) -> None:
            dataset.PatientID, dataset.PatientSex, dataset.PatientAge = patient, "F", "061Y"
            dataset.SeriesNumber = "4"

        return change

    write_series(tmp_path / "x" / "1", "1.2.33333333", change=of("anna"))
    write_series(tmp_path / "x" / "2", "1.2.44444444", change=of("berta"))
    header(tmp_path / "x" / "dose.dcm", "1.9", sop_class="1.2.840.10008.5.1.4.1.1.88.67", modality="SR").save_as(
        tmp_path / "x" / "dose.dcm", enforce_file_format=True
    )
    found = find_cases(tmp_path)
    assert found.layout == "DICOM tree"
    first, second = found.cases
    assert (first.id, first.patient, first.series) == ("anna_4_33333333", "anna", "1.2.33333333")
    assert (first.image, second.image) == (tmp_path / "x" / "1", tmp_path / "x" / "2")
    assert first.attributes["sex"] == "F"
    assert first.attributes["age"] == "061Y"
    assert [(each.path.name, each.why) for each in found.passed_over] == [("dose.dcm", "SR")]


def test_folders_that_are_links_are_followed_and_a_circle_of_links_ends(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "p1" / "scan.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert [case.id for case in find_cases(tmp_path / "in").cases] == ["linked_p1"]


@pytest.mark.parametrize("channels", ["CT", ["CT"]])
def test_channels_of_nnunet_that_are_no_mapping_are_refused(channels: object, tmp_path: Path) -> None:
    image(tmp_path / "imagesTr" / "a_0000.nii.gz")
    write_json(tmp_path / "dataset.json", {"channel_names": channels, "labels": {"background": 0, "liver": 1}})
    with pytest.raises(InvalidConfigError, match="accepted: a name for each number"):
        find_cases(tmp_path)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "s1" / "ct.nii.gz"), labels(tmp_path / "s1" / "segmentations" / "liver.nii.gz")
    (tmp_path / "meta.csv").write_bytes("image_id;institute\ns1;Universität\n".encode("latin-1"))
    with pytest.raises(InvalidConfigError, match="is not text in UTF-8"):
        find_cases(tmp_path)


def test_a_datalist_takes_a_label_in_a_list_passes_over_several_and_refuses_what_is_no_list(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    several = {"image": "a.nii.gz", "label": ["a.nii.gz", "b.nii.gz"]}
    path = write_json(tmp_path / "list.json", {"training": [{"image": "a.nii.gz", "label": ["seg.nii.gz"]}, several]})
    found = find_cases(path)
    assert [label.path.name for case in found.cases for label in case.labels] == ["seg.nii.gz"]
    assert "expected the path of one label map" in found.passed_over[0].why
    write_json(path, {"training": [{"image": "a.nii.gz"}], "test": 5})
    with pytest.raises(InvalidConfigError, match="accepted: a list of cases"):
        find_cases(path)


def test_files_of_one_name_in_the_folders_of_a_datalist_are_of_several_patients(tmp_path: Path) -> None:
    entries = [{"image": image(tmp_path / f"s{k}" / "ct.nii.gz").relative_to(tmp_path).as_posix()} for k in range(3)]
    listed = [*entries[:2], entries[2] | {"patient": None}, {"image": ""}]
    found = find_cases(write_json(tmp_path / "list.json", {"training": listed}))
    assert [(case.id, case.patient) for case in found.cases] == [("s0", "s0"), ("s1", "s1"), ("s2", "s2")]
    assert len(found.passed_over) == 1


def test_a_dicom_tree_stays_one_beside_files_of_slicer(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    image(tmp_path / "scan" / "volume.nrrd"), segments(tmp_path / "scan" / "volume.seg.nrrd")
    found = find_cases(tmp_path)
    assert (found.layout, len(found.cases)) == ("DICOM tree", 1)
    assert {each.path.name for each in found.passed_over} >= {"volume.nrrd", "volume.seg.nrrd"}


def test_masks_in_a_folder_that_is_called_after_an_image_are_of_it(tmp_path: Path) -> None:
    image(tmp_path / "p1.nii.gz"), labels(tmp_path / "p1" / "segmentations" / "liver.nii.gz")
    image(tmp_path / "images" / "p2.nii.gz"), labels(tmp_path / "labels" / "p2" / "seg.nii.gz")
    found = find_cases(tmp_path)
    assert {case.id: len(case.labels) for case in found.cases} == {"p1": 1, "p2": 1}
    assert found.passed_over == ()


def test_scans_whose_names_are_alike_as_ids_stay_apart(tmp_path: Path) -> None:
    for name in ("case 1", "case_1"):
        image(tmp_path / f"{name}.nii.gz"), labels(tmp_path / f"{name}_seg.nii.gz")
    image(tmp_path / "p1.nii.gz"), image(tmp_path / "p1" / "ct.nii.gz")
    found = find_cases(tmp_path)
    pairs = {case.image.name: [each.path.name for each in case.labels] for case in found.cases}
    assert pairs["case 1.nii.gz"] == ["case 1_seg.nii.gz"]
    assert pairs["case_1.nii.gz"] == ["case_1_seg.nii.gz"]
    assert {"p1.nii.gz", "ct.nii.gz"} <= set(pairs)
    assert found.passed_over == ()
