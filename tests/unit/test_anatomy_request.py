"""What anatomy can be asked for: names, sizes, and what no body has."""

import pytest

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.request import AnatomyRequest, check_region, check_view
from maisi.anatomy.sizes import size_rules, volume_of_size
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.anatomy.wish import Wish
from maisi.errors import InvalidAnatomyError, InvalidLabelsError, InvalidRequestError

V = load_vocabulary()


def test_names_of_any_vocabulary_and_sizes_of_every_kind_are_taken() -> None:
    request = AnatomyRequest.parse(
        ["liver=0.5", "kidney_right=150 ml", '"hepatic tumor"=20mm', "Gallbladder=none", "urinary bladder=any"]
    )
    assert request.sized[V.id("liver")] == pytest.approx(V.places["liver"].ml[0])
    assert request.sized[V.id("right kidney")] == 150
    assert request.sized[V.id("hepatic tumor")] == pytest.approx(4.19, abs=0.01)  # a ball 20 mm across
    assert request.absent == {V.id("gallbladder")}
    assert request.present == {V.id("bladder")}
    assert request.lesions == {V.id("hepatic tumor")}


@pytest.mark.parametrize("name", ["liver", "gallbladder", "hepatic tumor", "heart"])
def test_sizes_from_0_to_1_grow_from_small_by_usual_to_large(name: str) -> None:
    small, usual, large = (volume_of_size(V.id(name), size, V) for size in (0, 0.5, 1))
    assert small < usual < large
    assert usual**2 == pytest.approx(small * large)


def test_every_name_of_the_size_rules_is_in_the_vocabulary() -> None:
    rules = size_rules()
    for name in (*rules.scale.spread, *rules.fixed):
        assert V.id(name)
    for name in (*rules.change.gives, *rules.change.fills, *rules.fixed_groups):
        assert V.members(name)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (["spleen"], "names no structure and size"),
        (["spleen=big"], "'big' is no size"),
        (["spleen=-1"], "'-1' is no size"),
        (["spleen=180"], "180 is above 1 and has no unit"),
        (["spleen=0ml"], "is no volume"),
        (["liver=0.5", "LIVER=0.6"], "liver and LIVER say the size of liver twice"),
        (["hepatic tumor=0.3", "liver=none"], "hepatic tumor grows in liver, which is to be absent"),
        (["hepatic tumor=900ml", "liver=0.1"], "do not fit into liver"),
        (["spleen=9000ml"], "larger than any"),
        (["vertebrae L3=0.5"], "vertebrae L3=any or none"),
        (["dummy1=any"], "a number without a structure"),
        (["body=none"], "no label map without body"),
        (["liver=20mm"], "has no diameter"),
        (["larynx=0.5", "brachiocephalic trunk=0.5", "body=2"], "above 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(wishes: list[str], words: str) -> None:
    with pytest.raises(InvalidAnatomyError, match=words) as refusal:
        AnatomyRequest.parse(wishes)
    assert "accepted" in str(refusal.value)


def test_an_unknown_structure_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(InvalidLabelsError, match="did you mean 'pancreas'"):
        AnatomyRequest.parse(["pancrea=0.5"])
    with pytest.raises(InvalidRequestError, match="did you mean 'pancreatic tumor'"):
        AnatomyRequest.parse(["pancreatc tumor=0.5"])
    assert AnatomyRequest.parse(["liver cancer=0.5"]).lesions == {V.id("hepatic tumor")}


def test_a_structure_outside_of_the_region_is_refused_and_one_at_its_end_is_not() -> None:
    check_region(AnatomyRequest.parse(["liver=any", "vertebrae T12=any", "lung tumor=any"]), RegionSpan.named("chest"))
    with pytest.raises(InvalidAnatomyError, match="brain lies in the region head, outside of chest"):
        check_region(AnatomyRequest.parse(["brain=any"]), RegionSpan.named("chest"))
    check_region(AnatomyRequest.parse(["brain=any"]), RegionSpan.named("head", "chest"))


def test_organs_that_cannot_fit_into_the_field_of_view_together_are_refused() -> None:
    request = AnatomyRequest.parse(["liver=1500ml", "spleen=200ml", "hepatic tumor=any"])
    check_view(request, (200, 200, 200))
    with pytest.raises(InvalidAnatomyError, match="1700 ml together"):
        check_view(request, (120, 120, 120))


@pytest.mark.parametrize("text", ["liver=0.25", "spleen=180ml", "hepatic tumor=25mm", "gallbladder=none", "colon=any"])
def test_a_wish_is_said_again_as_it_was(text: str) -> None:
    assert Wish.parse(text).text == text
