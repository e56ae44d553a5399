"""The vocabulary: MAISI's ids, our extensions, names from elsewhere, and refusals."""

import numpy as np
import pytest

from maisi.anatomy.vocabulary import ClassDeclaration, extended, load_vocabulary
from maisi.errors import InvalidConfigError, InvalidLabelsError

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


def test_ids_are_found_in_arrays_of_any_type() -> None:
    ids = np.zeros((4, 3, 2), np.uint8)
    ids[1, 1, 1], ids[3, 0, 0] = 200, 6
    for dtype in (np.uint8, np.uint16, np.int64, np.float32):
        assert vocabulary.check_ids(ids.astype(dtype)) == (6, 200)


def test_a_bundle_extends_the_vocabulary_by_classes_of_its_own() -> None:
    ours = extended(
        vocabulary, {160: "stent", 161: ClassDeclaration(name="pleural effusion", host="lungs", hu=(10, 5))}
    )
    assert ours.id("stent") == 160
    assert ours.find("Pleural_Effusion") == 161
    assert ours.check_ids(np.array([0, 1, 160, 161])) == (1, 160, 161)
    assert ours.group("declared") == (160, 161)
    assert ours.structure(161).hu == (10, 5)
    assert ours.structure("stent").hu == vocabulary.structure("body").hu
    assert len({structure.colour for structure in ours.structures}) == len(vocabulary.structures) + 2
    assert tuple(ours.palette[160]) == ours.structure(160).colour
    assert not vocabulary.knows("stent")


def test_every_free_id_can_be_declared_each_with_a_colour_of_its_own() -> None:
    free = [id for id in range(1, 256) if id not in vocabulary.ids or vocabulary.structure(id).is_dummy]
    ours = extended(vocabulary, {id: f"class {id}" for id in free})
    assert ours.ids == tuple(range(1, 256))
    assert len({structure.colour for structure in ours.structures}) == 255


def test_an_id_that_maisi_reserves_and_never_fills_can_be_declared() -> None:
    ours = extended(vocabulary, {2: "pleural effusion"})
    assert ours.name(2) == "pleural effusion"
    assert 2 not in ours.group("dummies")


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({1: "stent"}, "id 1, which is liver; free: 2, 16, 18"),
        ({256: "stent"}, "256, which does not fit 8 bits"),
        ({0: "stent"}, "id 0"),
        ({160: "Kidney_Left"}, "knows that name already"),
        ({160: "stent", 161: "Stent"}, "knows that name already"),
        ({160: " "}, "cannot be called"),
        ({160: ClassDeclaration(name="stent", host="no such host")}, "no such host"),
        ({160: ClassDeclaration(name="stent", groups=("dummies",))}, "dummies"),
        ({160: ClassDeclaration(name="stent", region="knee")}, "knee"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(classes: dict[int, str | ClassDeclaration], said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        extended(vocabulary, classes)


def test_places_name_structures_that_exist_and_are_boxes() -> None:
    assert set(vocabulary.places) <= set(vocabulary.names)
    for place in vocabulary.places.values():
        assert all(low < high for low, high in (place.x, place.y, place.z, place.ml))
        assert min(place.half) > 0


def test_a_left_structure_lies_where_its_right_one_does_in_a_mirror() -> None:
    left, right = (vocabulary.places_by_id[vocabulary.id(f"{side} kidney")] for side in ("left", "right"))
    assert left.x == (-right.x[1], -right.x[0])
    assert left.x[1] < 0 < right.x[0]
    assert (left.y, left.z, left.half, left.ml) == (right.y, right.z, right.half, right.ml)
