"""The vocabulary: MAISI's ids, our extensions, names from elsewhere, and refusals."""

import numpy as np
import pytest

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.space.files import read_labels

vocabulary = load_vocabulary()

UPSTREAM = {
    "liver": 1, "spleen": 3, "pancreas": 4, "right kidney": 5, "aorta": 6, "inferior vena cava": 7,
    "gallbladder": 10, "esophagus": 11, "stomach": 12, "duodenum": 13, "left kidney": 14, "bladder": 15,
    "portal vein and splenic vein": 17, "small bowel": 19, "brain": 22, "lung tumor": 23,
    "pancreatic tumor": 24, "hepatic vessel": 25, "hepatic tumor": 26, "colon cancer primaries": 27,
    "left lung upper lobe": 28, "right lung lower lobe": 32, "vertebrae L5": 33, "vertebrae L1": 37,
    "vertebrae T12": 38, "vertebrae T1": 49, "vertebrae C7": 50, "vertebrae C1": 56, "trachea": 57,
    "left iliac artery": 58, "right iliac vena": 61, "colon": 62, "left rib 1": 63, "left rib 12": 74,
    "right rib 1": 75, "right rib 12": 86, "left humerus": 87, "left femur": 93, "right hip": 96, "sacrum": 97,
    "left gluteus maximus": 98, "left autochthon": 104, "right iliopsoas": 107, "costal cartilages": 114,
    "heart": 115, "left kidney cyst": 116, "skull": 120, "spinal cord": 121, "sternum": 122,
    "thyroid gland": 126, "vertebrae S1": 127, "bone lesion": 128, "airway": 132, "body": 200,
}  # fmt: skip


def test_upstream_ids_are_kept() -> None:
    assert {name: vocabulary.id(name) for name in UPSTREAM} == UPSTREAM
    assert set(range(1, 133)) <= set(vocabulary.ids)


def test_ids_names_and_colours_are_unique_and_fit_eight_bits() -> None:
    structures = vocabulary.structures
    for values in ([s.id for s in structures], [s.name for s in structures], [s.colour for s in structures]):
        assert len(set(values)) == len(structures)
    assert max(vocabulary.ids) <= 255
    assert all(0 <= channel <= 255 for s in structures for channel in s.colour)


def test_the_eight_dummies_are_recorded_and_belong_to_nothing() -> None:
    assert vocabulary.group("dummies") == (2, 16, 18, 20, 21, 129, 130, 131)
    assert vocabulary.structure(129).vista == "kidney mass"
    assert vocabulary.structure(2).region == "any"
    with pytest.raises(InvalidLabelsError):
        vocabulary.find("kidney")  # VISTA's number 2, which no label map holds


def test_every_structure_but_the_dummies_has_hounsfield_units_and_a_known_region() -> None:
    for structure in vocabulary.structures:
        assert structure.is_dummy == (structure.hu is None)
        assert structure.region in {*vocabulary.regions, "any"}


def test_tumours_and_cysts_name_a_host_that_exists() -> None:
    growths = [vocabulary.structure(id) for id in (*vocabulary.group("tumours"), *vocabulary.group("cysts"))]
    assert len(growths) >= 8
    for growth in growths:
        assert growth.host in vocabulary.groups or vocabulary.knows(str(growth.host))


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("kidney_left", "left kidney"),
        ("vertebrae_L3", "vertebrae L3"),
        ("heart_myocardium", "heart"),
        ("LeftParotid", "left parotid"),
        ("SpinalCord", "spinal cord"),
        ("PTV63", "target volume PTV63"),
        ("GTV_Mass (soft tissue sarcoma)", "soft-tissue sarcoma"),
        ("LUNG_R", "lungs"),
        ("  Urinary  Bladder", "bladder"),
    ],
)
def test_names_from_elsewhere_are_found(foreign: str, ours: str) -> None:
    assert vocabulary.find(foreign) == vocabulary.id(ours)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidLabelsError, match="did you mean 'liver'"):
        vocabulary.id("lver")
    with pytest.raises(InvalidLabelsError, match="tumours"):
        vocabulary.group("tumors")


def test_unknown_ids_are_refused_with_what_is_accepted() -> None:
    with pytest.raises(InvalidLabelsError, match=r"190, 401 .* accepted are 0 \(background\) and 1-"):
        vocabulary.check_ids(np.array([0, 1, 190, 401]))
    with pytest.raises(InvalidLabelsError, match=r"whole numbers; found 1\.5"):
        vocabulary.check_ids(np.array([0, 1.5]))
    assert vocabulary.check_ids(np.array([[0, 6], [1, 6]])) == (1, 6)


def test_foreign_labels_are_translated_and_a_name_nobody_knows_is_refused() -> None:
    foreign = np.array([[[0, 7], [300, 7]]], np.uint16)
    assert vocabulary.translate(foreign, {7: "Mandible", 300: "SpinalCord"}).tolist() == [[[0, 137], [121, 137]]]
    with pytest.raises(InvalidLabelsError, match="celiac"):
        vocabulary.translate(foreign, {7: "celiac_trunk", 300: "SpinalCord"})
    dropped = vocabulary.translate(foreign, {7: "celiac_trunk", 300: "SpinalCord"}, drop=["celiac_trunk"])
    assert dropped.tolist() == [[[0, 0], [121, 0]]]
    with pytest.raises(InvalidLabelsError, match="300 has no name"):
        vocabulary.translate(foreign, {7: "Mandible"})


def test_totalsegmentator_names_give_the_ids_of_real_label_maps(shared_data, shared_cases) -> None:  # type: ignore[no-untyped-def]
    case = next(case for case in shared_cases if case["id"] == "totalseg_example_ct")
    theirs, ours = (read_labels(shared_data / case[key]).array for key in ("labels", "labels_maisi"))
    translated = vocabulary.translate(theirs, {int(id): name for id, name in case["label_names"].items()})
    labelled = theirs != 0
    assert (translated[labelled] == ours[labelled]).all()
