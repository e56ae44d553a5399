"""Label maps drawn by networks of random weights: what is asked, refused, repeated, told."""

from functools import partial

import numpy as np
import pytest
import torch

from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.slots import ABSENT, full_volumes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import (
    Bundle,
    BundleInfo,
    DDPMSpec,
    LabelGeneratorInfo,
    RectifiedFlowSpec,
    load_bundle,
    save_bundle,
)
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.errors import InvalidAnatomyError, InvalidBundleError, InvalidGridError, InvalidRequestError, NotDrawnError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.label_codec import decode_ids, logits_of
from maisi.pipelines.label_generator import GeneratedLabels, rehearse, slot_values
from maisi.pipelines.labels import LabelSource
from maisi.pipelines.requests import GenerateLabelsRequest, GenerateRequest
from maisi.pipelines.validate import label_sources
from maisi.runs.tasks.labels_generate import source_of
from maisi.space.grid import Grid

ID = load_vocabulary().id
CHANNELS = (0, ID("body"), ID("liver"), ID("colon"), ID("hepatic tumor"))
TOLD = LabelGeneratorInfo(
    size=(16, 16, 8),
    spacing_mm=(10.0, 10.0, 10.0),
    scheduler=RectifiedFlowSpec(),
    channels=CHANNELS,
    sized=tuple(full_volumes()),
    lesions=("hepatic tumor",),
    open_sizes=True,
)
GRID = Grid.centered((20, 20, 8), (8.0, 8.0, 8.0))
COMPUTE = Compute(precision="float32", threads=1)


def generator_bundle(**changes: object) -> Bundle:
    """A bundle whose networks have random weights; body is the commonest answer."""
    torch.manual_seed(0)
    codec = AutoencoderConfig(
        in_channels=8, out_channels=len(CHANNELS), channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2
    )
    unet = UNetConfig(
        channels=(8, 8), num_res_blocks=(1, 1), attention_levels=(False, True), head_channels=8, norm_groups=4,
        regions=True, context_channels=10,
    )  # fmt: skip
    networks = {"label_autoencoder": Autoencoder(codec).eval(), "label_unet": DenoisingUNet(unet).eval()}
    for network in networks.values():
        network.requires_grad_(False)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    info = BundleInfo(
        name="drawn", licence="CC0-1.0", vocabulary_version="1.0", label_generator=TOLD.model_copy(update=changes)
    )
    return Bundle.of(info, networks)


def source(bundle: Bundle | None = None, grid: Grid = GRID, **settings: object) -> GeneratedLabels:
    given = {"steps": 2, "compute": COMPUTE, **settings}
    return GeneratedLabels(bundle or generator_bundle(), "abdomen", grid, **given)  # type: ignore[arg-type]


def drawn(source: GeneratedLabels, seed: int = 0) -> np.ndarray:
    anatomy = source.draw(np.random.default_rng(seed), torch.Generator().manual_seed(seed))
    assert anatomy.labels is not None
    return anatomy.labels.array


def test_it_is_a_label_source_whose_maps_lie_on_the_grid_and_depend_on_the_seed_alone() -> None:
    made = source()
    assert isinstance(made, LabelSource)
    first, again, other = drawn(made, 0), drawn(made, 0), drawn(made, 1)
    assert first.shape == GRID.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("spec", [DDPMSpec(), RectifiedFlowSpec()], ids=["ddpm", "flow"])
def test_both_schedules_draw(spec: DDPMSpec | RectifiedFlowSpec) -> None:
    assert drawn(source(generator_bundle(scheduler=spec))).any()


def test_an_unasked_lesion_never_appears_and_an_absent_organ_neither() -> None:
    bundle = generator_bundle()
    raw = [
        decode_ids(bundle.network("label_autoencoder"), torch.randn(1, 4, 8, 8, 4), CHANNELS)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert ID("hepatic tumor") in np.concatenate(raw)  # the networks draw it
    for seed in range(2):
        found = drawn(source(bundle, sizes={"colon": ABSENT}), seed)
        assert not np.isin(found, [ID("hepatic tumor"), ID("colon")]).any()


def test_what_was_asked_for_is_there_or_the_request_fails() -> None:
    assert ID("hepatic tumor") in drawn(source(sizes={"hepatic tumor": 0.5, "liver": 0.5}))
    with pytest.raises(NotDrawnError, match=r"drew no gallbladder; accepted: a larger size, .* or more --max-tries"):
        drawn(source(sizes={"gallbladder": 0.5}))


def test_sizes_and_region_reach_the_network() -> None:
    conditions = source(sizes={"liver": 0.5, "colon": ABSENT}).conditions
    expected = [-2.0, 0.5, -2.0, -2.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    assert conditions["context"].flatten().tolist() == expected
    assert conditions["top_region"].argmax() == 2
    told = source(generator_bundle(open_sizes=False)).conditions["context"].flatten().tolist()
    assert all(0 < size < 1 for size in told[:5])
    assert told[5:] == [-1.0] * 5


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (
            {"sizes": {"lung tumor": 0.5}},
            InvalidRequestError,
            "not learned lung tumor; lesions that it has: hepatic",
        ),
        ({"sizes": {"heart": 0.5}}, InvalidRequestError, "'heart' has no size"),
        (
            {"grid": Grid.centered((32, 32, 32), (6, 6, 6))},
            InvalidGridError,
            "192 x 192 x 192 mm is larger than",
        ),
    ],
)
def test_what_it_cannot_draw_is_refused(asked: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source(**asked)


def test_a_bundle_without_label_generator_says_so() -> None:
    bundle = generator_bundle()
    plain = Bundle.of(
        bundle.info.model_copy(update={"label_generator": None}), {n: bundle.network(n) for n in bundle.names}
    )
    with pytest.raises(InvalidBundleError, match="draws no label maps; it holds label_autoencoder, label_unet"):
        source(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": "other_unet"}, "with label_autoencoder and other_unet"),
        ({"sized": ("liver",)}, "is told 10 sizes, but 1 structures"),
    ],
)
def test_networks_that_do_not_belong_together_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InvalidBundleError, match=message):
        generator_bundle(**changes)


def test_a_saved_bundle_draws_the_same(tmp_path) -> None:
    bundle = generator_bundle()
    loaded = load_bundle(save_bundle(bundle, tmp_path / "drawn"))
    assert loaded.info.label_generator == TOLD
    assert np.array_equal(drawn(source(loaded)), drawn(source(bundle)))


def test_logits_come_slab_by_slab_and_are_those_of_the_whole() -> None:
    autoencoder = generator_bundle().network("label_autoencoder")
    latent = torch.randn(1, 4, 9, 4, 4)
    whole = autoencoder.decode(latent)[0]
    slabs = list(logits_of(autoencoder, autoencoder.decode_features(latent)))
    assert len(slabs) == 3
    torch.testing.assert_close(torch.cat(slabs, 1), whole)


def test_within_a_memory_limit_the_map_is_the_same() -> None:
    bundle, limited = generator_bundle(), COMPUTE.model_copy(update={"memory": 500_000_000})
    fitted = fit(bundle, limited, partial(rehearse, source(bundle)))
    agreement = drawn(source(fitted, compute=limited)) == drawn(source(bundle))
    assert agreement.mean() > 0.99


def test_what_is_asked_for_becomes_the_numbers_of_the_network() -> None:
    wishes = ("liver=1500ml", "gallbladder=none", "hepatic tumor=30ml", "lung tumor=5ml", "colon=any")
    expected = {
        "liver": 0.5,
        "gallbladder": ABSENT,
        "hepatic tumor": pytest.approx(0.1),
        "lung tumor": ABSENT,
        "colon": -2.0,
    }
    assert slot_values(AnatomyRequest.parse(wishes), TOLD) == expected
    without_open = TOLD.model_copy(update={"open_sizes": False})
    closed = slot_values(AnatomyRequest.parse(("colon=any", "hepatic tumor=any")), without_open)
    assert 0 < closed["colon"] < 1
    assert 0 < closed["hepatic tumor"] < 1


def test_half_precision_draws_nearly_the_same(tmp_path) -> None:
    path, half = save_bundle(generator_bundle(), tmp_path / "drawn"), Compute(precision="bfloat16", threads=1)
    narrow = load_bundle(path, dtype=torch.bfloat16, narrow_in_float32=True)
    fitted = fit(narrow, half, partial(rehearse, source(narrow, compute=half)))
    agreement = drawn(source(fitted, compute=half)) == drawn(source())
    assert agreement.mean() > 0.9


def test_guidance_compares_with_open_sizes_and_needs_a_network_that_knows_them() -> None:
    asked = {"sizes": {"liver": 1.0}}
    plain, guided = drawn(source(**asked)), drawn(source(**asked, guidance=4.0))
    assert not np.array_equal(plain, guided)
    made = source(**asked, guidance=4.0)
    assert made.open_conditions["context"].flatten().tolist() == [-2.0] * 10
    with pytest.raises(InvalidRequestError, match="guidance needs a label generator that knows open sizes"):
        source(generator_bundle(open_sizes=False), guidance=2.0)


def test_a_request_for_cts_may_name_the_bundle_that_draws_its_labels(tmp_path) -> None:
    path = save_bundle(generator_bundle(), tmp_path / "drawn")
    asked = {"region": "abdomen", "spacing": (4.0, 4.0, 4.0), "force": True, "compute": COMPUTE}
    request = GenerateRequest(label_bundle=str(path), **asked)  # type: ignore[arg-type]
    (made,) = label_sources(request, load_bundle("ct-small"))
    assert isinstance(made, GeneratedLabels)
    assert made.grid.shape == (40, 40, 16)  # as much of the usual view as the network draws, in whole multiples
    assert made.grid.spacing == (4.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("wish", "lacking"), [("pancreas=0.5", "pancreas"), ("spleen=any", "spleen"), ("pancreatic tumor=15mm", "pancreas")]
)
def test_what_it_has_no_channel_for_is_refused_before_anything_is_drawn(tmp_path, wish: str, lacking: str) -> None:
    bundle = generator_bundle()
    path = save_bundle(bundle, tmp_path / "drawn")
    asked = {"region": "abdomen", "spacing": (4.0, 4.0, 4.0), "anatomy": (wish,), "compute": COMPUTE}
    refused = f"bundle drawn draws no {lacking}; accepted: colon, hepatic tumor, liver"
    with pytest.raises(InvalidAnatomyError, match=refused):
        label_sources(GenerateRequest(label_bundle=str(path), force=True, **asked), load_bundle("ct-small"))
    with pytest.raises(InvalidAnatomyError, match=refused):
        source_of(GenerateLabelsRequest(**asked), bundle, GRID)


def test_a_tumour_that_it_has_not_learned_is_planted_into_a_host_that_it_draws() -> None:
    asked = GenerateLabelsRequest(anatomy=("colon cancer primaries=15mm", "gallbladder=none"), compute=COMPUTE)
    source_of(asked, generator_bundle(), GRID)
