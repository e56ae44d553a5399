"""Label maps without lesions and without names; the contrast that is learned from the first."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maisi.anatomy.lesions import healed, healthy_ids, lesion_ids, unnamed, without_structures
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import own_labels
from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError, InvalidLabelsError
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap
from maisi.training.contrastive import ContrastiveConfig, differing, labels_without, region_contrast
from maisi.training.new_classes import NewClass, numbered, vocabulary_with
from maisi.training.partial_labels import LabelDropout, thinned_out

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id
BODY = ID("body")


def filled(name: str, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    return np.full(shape, ID(name), np.uint8)


@pytest.mark.parametrize(
    ("lesion", "host"),
    [
        ("hepatic tumor", "liver"),
        ("pancreatic tumor", "pancreas"),
        ("colon cancer primaries", "colon"),
        ("left kidney cyst", "left kidney"),
        ("right kidney cyst", "right kidney"),
        ("soft-tissue sarcoma", "body"),
        ("lung tumor", "right lung lower lobe"),
        ("lung tumor", "lungs"),
        ("bone lesion", "vertebrae L3"),
        ("bone lesion", "skeleton"),
    ],
)
def test_a_removed_lesion_is_what_it_grew_in(lesion: str, host: str) -> None:
    labels = filled(host)
    labels[4:7, 4:7, 4:7] = ID(lesion)
    assert np.array_equal(without_structures(labels, lesion_ids(VOCABULARY), VOCABULARY), filled(host))


def test_every_lesion_of_the_vocabulary_becomes_something_else() -> None:
    lesions = lesion_ids(VOCABULARY)
    assert {VOCABULARY.name(id) for id in lesions} >= {"lung tumor", "bone lesion", "left kidney cyst"}
    assert ID("hepatic vessel") not in lesions
    for id in lesions:
        assert set(healthy_ids(VOCABULARY, id)) - set(lesions)


def test_each_part_of_a_lung_tumour_becomes_the_lobe_that_most_of_its_surface_touches() -> None:
    labels = filled("left lung upper lobe", (24, 8, 8))
    labels[14:] = ID("left lung lower lobe")
    labels[2:5, 2:5, 2:5] = labels[10:15, 2:5, 2:5] = labels[18:20, 2:5, 2:5] = ID("lung tumor")
    healthy = without_structures(labels, [ID("lung tumor")], VOCABULARY)
    assert set(np.unique(healthy[2:5])) == {ID("left lung upper lobe")}
    assert (healthy[10:15, 2:5, 2:5] == ID("left lung upper lobe")).all()
    assert (healthy[18:20, 2:5, 2:5] == ID("left lung lower lobe")).all()


def test_a_lesion_without_a_host_beside_it_becomes_the_commonest_host_else_body() -> None:
    labels = filled("body")
    labels[4:6, 4:6, 4:6] = ID("lung tumor")
    assert np.array_equal(without_structures(labels, [ID("lung tumor")], VOCABULARY), filled("body"))
    labels[10:] = ID("right lung upper lobe")
    healthy = without_structures(labels, [ID("lung tumor")], VOCABULARY)
    assert (healthy[4:6, 4:6, 4:6] == ID("right lung upper lobe")).all()


def test_a_healed_mask_is_what_is_around_it_and_unlabelled_where_that_is() -> None:
    labels = np.zeros((20, 12, 12), np.uint8)
    labels[:8] = ID("liver")
    hole, elsewhere = (np.zeros(labels.shape, bool) for _ in range(2))
    hole[2:5, 3:6, 3:6] = True
    elsewhere[13:16, 3:6, 3:6] = True
    labels[hole] = 0
    both = healed(labels, hole | elsewhere, VOCABULARY)
    assert (both[hole] == ID("liver")).all()
    assert (both[elsewhere] == 0).all()
    everywhere = healed(labels, np.ones(labels.shape, bool), VOCABULARY)
    assert np.array_equal(everywhere, labels)


def test_any_structure_can_be_removed_and_without_a_host_leaves_body() -> None:
    labels = filled("liver")
    labels[:3] = ID("gallbladder")
    assert (without_structures(labels, [ID("gallbladder")], VOCABULARY)[:3] == BODY).all()
    vocabulary = vocabulary_with({"haemangioma": NewClass(id=154, like="hepatic tumor")})
    labels[:3] = 154
    assert np.array_equal(without_structures(labels, lesion_ids(vocabulary), vocabulary), filled("liver"))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_contrast_is_that_of_the_formula(batch: int) -> None:
    draw = torch.Generator().manual_seed(batch)
    with_, without, target = (torch.randn((batch, 2, 10, 9, 8), generator=draw) for _ in range(3))
    region = torch.zeros((batch, 10, 9, 8), dtype=torch.bool)
    region[0, 0:2, 3:5, 3] = True
    if batch > 1:
        region[2, 5, 5, 5] = True  # the second sample has no lesion
        with_[2] += 20.0
    config = ContrastiveConfig(delta=1.5, margin=2)
    foreground, background = [], []
    for i in range(batch):
        ours = torch.nonzero(region[i])
        if not len(ours):
            continue
        inside = [float((with_ - without)[i, :, *at].abs().mean()) for at in ours]
        foreground.append(max(-float(np.mean(inside)), -1.5))
        outside = [
            float((without - target)[i, :, *at].abs().mean())
            for at in np.ndindex(10, 9, 8)
            if min(int((ours - torch.tensor(at)).abs().amax(1).min()), 99) > 2
        ]
        background.append(np.mean(outside))
    found = region_contrast(with_, without, target, region, config)
    assert float(found.foreground) == pytest.approx(np.mean(foreground), rel=1e-5)
    assert float(found.background) == pytest.approx(np.mean(background), rel=1e-5)
    if batch > 1:
        assert -1.5 in foreground


def test_the_contrast_knows_no_size_of_the_lesion() -> None:
    with_, without = torch.full((1, 3, 12, 12, 12), 0.7), torch.zeros(1, 3, 12, 12, 12)
    small, large = torch.zeros(2, 1, 12, 12, 12, dtype=torch.bool)
    small[0, 3, 3, 3], large[0, :4, :4, :4] = True, True
    for region in (small, large):
        assert float(region_contrast(with_, without, without, region, ContrastiveConfig()).foreground) == pytest.approx(
            -0.7
        )


def test_without_a_lesion_there_is_no_contrast_and_no_nan() -> None:
    with_ = torch.randn((2, 3, 8, 8, 8), generator=torch.Generator().manual_seed(0)).requires_grad_()
    for region in (torch.zeros(2, 8, 8, 8, dtype=torch.bool), torch.ones(2, 8, 8, 8, dtype=torch.bool)):
        found = region_contrast(with_, with_ + 1, with_, region, ContrastiveConfig())
        assert found.background.item() == 0.0
        assert found.foreground.item() == pytest.approx(-1.0 if region.any() else 0.0, abs=1e-5)
        (gradient,) = torch.autograd.grad(found.foreground + found.background, with_)
        assert bool(torch.isfinite(gradient).all())


def test_the_region_is_where_any_voxel_of_a_latent_voxel_changed() -> None:
    labels = torch.full((1, 16, 16, 16), ID("liver"), dtype=torch.uint8)
    labels[0, 7, 0, 15] = ID("hepatic tumor")
    region = differing(labels, labels_without(labels, ("tumours",), VOCABULARY), (4, 4, 4))
    assert torch.nonzero(region).tolist() == [[0, 1, 0, 3]]


def test_a_map_whose_structures_go_unnamed_keeps_lesions_background_and_the_rest() -> None:
    labels = filled("body")
    labels[:2], labels[2:4], labels[4:6], labels[6] = 0, ID("liver"), ID("spleen"), ID("hepatic tumor")
    before = torch.from_numpy(labels)
    all_gone = thinned_out(before, LabelDropout(probability=1, kept=(0, 0)), VOCABULARY, np.random.default_rng(0))
    assert set(np.unique(all_gone)) == {0, BODY, ID("hepatic tumor")}
    none_gone = thinned_out(before, LabelDropout(probability=1, kept=(1, 1)), VOCABULARY, np.random.default_rng(0))
    never = thinned_out(before, LabelDropout(), VOCABULARY, np.random.default_rng(0))
    assert torch.equal(none_gone, before)
    assert torch.equal(never, before)
    with pytest.raises(InvalidLabelsError, match="background"):
        unnamed(labels, [0], VOCABULARY)


def test_structures_lose_their_names_one_by_one_or_by_group() -> None:
    ribs = [ID(f"left rib {i}") for i in range(1, 13)]
    labels = torch.tensor(ribs, dtype=torch.uint8).repeat_interleave(4).reshape(12, 2, 2)
    rng = np.random.default_rng(0)
    counts = {1.0: set(), 0.0: set()}
    for by_group, seen in counts.items():
        config = LabelDropout(probability=1, kept=(0.5, 0.5), by_group=by_group)
        for _ in range(12):
            seen.add(len(set(np.unique(thinned_out(labels, config, VOCABULARY, rng))) - {BODY}))
    assert counts[1.0] == {0, 12}
    assert len(counts[0.0]) > 2


def test_a_new_class_has_what_is_known_of_the_one_that_it_is_like() -> None:
    vocabulary = vocabulary_with({"my tumour": NewClass(id=154, like="hepatic tumor"), "stent": NewClass(id=155)})
    tumour, like = vocabulary.structure(154), vocabulary.structure("hepatic tumor")
    assert (tumour.host, tumour.region, tumour.hu) == (like.host, like.region, like.hu)
    assert 154 in vocabulary.members("tumours")
    assert 154 in lesion_ids(vocabulary)
    assert 155 not in lesion_ids(vocabulary)
    assert vocabulary_with({}) is VOCABULARY


def test_without_an_id_a_class_gets_the_free_one_with_the_most_bits_in_common() -> None:
    classes = {"a": NewClass(like="hepatic tumor"), "b": NewClass(like="hepatic tumor"), "c": NewClass(id=18)}
    ids = {name: id for id, name in numbered(classes).items()}
    assert ids["a"] == ID("hepatic tumor") + 128  # one bit, and no number that MAISI reserves
    assert (ids["b"] ^ ID("hepatic tumor")).bit_count() == 2
    assert ids["c"] == 18
    assert len(set(ids.values())) == 3


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"mine": NewClass(id=133)}, r"cannot have the id 133, which is brainstem; free: 2, 16"),
        ({"liver": NewClass(id=154)}, "knows that name already"),
        ({"mine": NewClass(id=154, like="hepatic")}, "which the vocabulary does not know"),
        ({"mine": NewClass(id=154), "other": NewClass(id=154)}, "have one id, 154"),
        ({"mine": NewClass(id=154, host="moon")}, "host 'moon'"),
    ],
)
def test_a_class_that_cannot_be_is_refused(classes: dict, said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        vocabulary_with(classes)


def test_label_files_call_a_new_class_by_its_name(tmp_path: Path) -> None:
    grid = Grid.centered((8, 8, 8), (3.0, 3.0, 3.0))
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6], labels[3:5, 3:5, 3:5] = 1, 2
    write_labels(LabelMap(labels, grid), tmp_path / "labels.nii.gz")
    names = {"1": "liver", "2": "my tumour"}
    case = Case(id="a", labels=tmp_path / "labels.nii.gz", label_names=names)
    vocabulary = vocabulary_with({"my tumour": NewClass(like="hepatic tumor")})
    found = own_labels(case, vocabulary=vocabulary)
    assert found is not None
    assert set(np.unique(found.array)) == {0, ID("liver"), 154}
    with pytest.raises(InvalidLabelsError, match="my tumour"):
        own_labels(case)
