"""The road at tiny size: conditioning, label sources, codec and generate."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_bundle import BACKBONE, random_bundle
from pydantic import ValidationError

from maisi.anatomy.bits import label_bits
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, Limits
from maisi.compute.calls import calls_of
from maisi.diffusion.denoiser import denoiser
from maisi.diffusion.sampler import sample
from maisi.errors import (
    InvalidBundleError,
    InvalidGridError,
    InvalidLabelsError,
    InvalidPlanError,
    InvalidRequestError,
    NotDrawnError,
)
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import UNetConfig
from maisi.pipelines.codec import decode, encode
from maisi.pipelines.conditioning import Conditioning, encode_conditioning, modality_code, shown_labels
from maisi.pipelines.generate import (
    Locked,
    draw_anatomy,
    draw_labels,
    draw_latent,
    generate,
    rehearse,
    sample_generators,
    seen_labels,
)
from maisi.pipelines.labels import (
    Anatomy,
    GivenLabels,
    GridRules,
    LabelRules,
    LabelsOf,
    LabelSource,
    file_source,
    folder_sources,
    region_grid,
)
from maisi.pipelines.quality.repair import region_of
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import validate_generate
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.volume import LabelMap, Volume

LIMITS = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(20, 20, 20), max_size=(32, 32, 32), held_to=())


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return random_bundle(LIMITS)


def asked(**more: object) -> GenerateRequest:
    compute = {name: more.pop(name) for name in ("memory", "device", "precision") if name in more}
    fields = {"size": (16, 16, 16), "spacing": (16.0, 16.0, 16.0), "steps": 2, "compute": compute, **more}
    return GenerateRequest.model_validate(fields)


def test_spacing_and_regions_enter_the_network_times_100() -> None:
    tensors = encode_conditioning(
        Conditioning(RegionSpan(BodyRegion.CHEST, BodyRegion.ABDOMEN), (2.0, 2.0, 4.0)),
        UNetConfig(**BACKBONE, regions=True, spacing=True),
    )
    assert tensors["spacing"].tolist() == [[200.0, 200.0, 400.0]]
    assert tensors["top_region"].tolist() == [[0.0, 100.0, 0.0, 0.0]]
    assert tensors["bottom_region"].tolist() == [[0.0, 0.0, 100.0, 0.0]]
    assert tensors["modality"].tolist() == [1]


def test_a_network_is_given_only_what_it_takes() -> None:
    config = UNetConfig(
        channels=(8, 16), num_res_blocks=(1, 1), attention_levels=(False, False), head_channels=8, norm_groups=4
    )
    assert encode_conditioning(Conditioning(RegionSpan.named("head"), (2, 2, 2)), config) == {}


def test_a_group_is_shown_to_the_controlnet_as_one_structure_and_written_as_it_was(bundle: Bundle) -> None:
    vocabulary = load_vocabulary()
    ids = np.array([[[vocabulary.id("left rib 4"), vocabulary.id("liver"), 0]]], np.uint8)
    shown = shown_labels(ids, {"bones": "skeleton"})
    assert shown.tolist() == [[[vocabulary.id("skeleton"), vocabulary.id("liver"), 0]]]
    assert ids[0, 0, 0] == vocabulary.id("left rib 4")
    merged = dataclasses.replace(bundle, info=bundle.info.model_copy(update={"shown_as": {"bones": "skeleton"}}))
    (as_is,), (as_one,) = generate(asked(), bundle), generate(asked(), merged)
    np.testing.assert_array_equal(as_is.labels.array, as_one.labels.array)
    assert not np.array_equal(as_is.volume.array, as_one.volume.array)


def test_an_unknown_modality_names_the_known() -> None:
    with pytest.raises(InvalidRequestError, match="ct with contrast"):
        modality_code("ultrasound")


def test_the_same_seed_gives_the_same_sample_whatever_the_count(bundle: Bundle) -> None:
    alone = list(generate(asked(count=1, seed=3), bundle))
    of_two = list(generate(asked(count=2, seed=3), bundle))
    np.testing.assert_array_equal(alone[0].volume.array, of_two[0].volume.array)
    np.testing.assert_array_equal(alone[0].labels.array, of_two[0].labels.array)
    assert not np.array_equal(of_two[0].volume.array, of_two[1].volume.array)


def test_volume_and_labels_lie_on_the_grid_asked_for(bundle: Bundle) -> None:
    (sample,) = generate(asked(size=(16, 24, 8)), bundle)
    assert sample.volume.grid.shape == sample.labels.grid.shape == (16, 24, 8)
    assert sample.volume.grid.spacing == pytest.approx((16.0, 16.0, 16.0))
    assert sample.volume.grid.is_close(sample.labels.grid)
    assert sample.volume.array.min() >= -1000
    assert sample.volume.array.max() <= 1000


def test_the_labels_change_the_volume(bundle: Bundle) -> None:
    (with_labels,) = generate(asked(), bundle)
    (without,) = generate(asked(controlnet_scale=0.0), bundle)
    assert not np.allclose(with_labels.volume.array, without.volume.array, atol=0.5)


def test_stages_are_told_in_order(bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    list(generate(asked(), bundle, lambda *stage: told.append(stage)))
    assert [stage for stage, _, _ in told] == [
        *("labels", "labels", "sample", "sample", "decode", "decode", "check", "check")
    ]
    assert told[3] == ("sample", 2, 2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"size": (17, 16, 16)}, r"nearest: \(16, 16, 16\) or \(20, 16, 16\)"),
        ({"size": (64, 16, 16)}, "size 64 x 16 x 16 is above the 32 x 32 x 32"),
        ({"spacing": (1.0, 16.0, 16.0)}, "spacing 1 x 16 x 16 mm is below the 2 x 2 x 2 mm"),
    ],
)
def test_a_grid_that_the_bundle_cannot_make_is_refused_with_what_it_can(bundle: Bundle, more: dict, said: str) -> None:
    with pytest.raises(InvalidGridError, match=said):
        next(generate(asked(**more), bundle))


def test_force_goes_on_beyond_the_limits(bundle: Bundle) -> None:
    (sample,) = generate(asked(spacing=(1.0, 16.0, 16.0), force=True), bundle)
    assert sample.volume.grid.spacing[0] == pytest.approx(1.0)


def test_a_bundle_without_a_unet_cannot_generate(bundle: Bundle) -> None:
    info = bundle.info.model_copy(update={"scheduler": None})
    only = Bundle.of(info, {"autoencoder": bundle.autoencoder})
    with pytest.raises(InvalidBundleError, match="no unet"):
        next(generate(asked(), only))


def test_labels_of_a_file_are_covered_at_a_spacing_that_the_bundle_takes(tmp_path: Path) -> None:
    ids = np.full((120, 100, 90), load_vocabulary().id("liver"), np.uint8)
    write_labels(LabelMap(ids, Grid.centered(ids.shape, (1.0, 1.0, 1.0))), tmp_path / "labels.nii.gz")
    source = file_source(tmp_path / "labels.nii.gz", LabelRules(GridRules(LIMITS, 4)))
    assert isinstance(source, LabelSource)
    assert source.grid.shape == (32, 32, 32)
    assert all(fov >= n for fov, n in zip(source.grid.fov_mm, ids.shape, strict=True))
    drawn = source.draw(np.random.default_rng(), torch.Generator())
    assert drawn.span == RegionSpan.named("abdomen")
    assert 0.5 < (drawn.labels.array > 0).mean() <= 1.0


def test_structures_too_small_for_the_voxels_of_the_bundle_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = load_vocabulary()
    ids = np.full((120, 100, 90), vocabulary.id("liver"), np.uint8)
    ids[60, 50, 45] = vocabulary.id("hepatic tumor")
    write_labels(LabelMap(ids, Grid.centered(ids.shape, (1.0, 1.0, 1.0))), tmp_path / "labels.nii.gz")
    source = file_source(tmp_path / "labels.nii.gz", LabelRules(GridRules(LIMITS, 4)))
    drawn = source.draw(np.random.default_rng(), torch.Generator())
    assert not (drawn.labels.array == vocabulary.id("hepatic tumor")).any()
    assert "too small for voxels of" in caplog.text
    assert "hepatic tumor" in caplog.text


@pytest.mark.parametrize("force", [False, True])
def test_labels_larger_than_the_bundle_takes_are_refused_or_forced_and_never_cut(tmp_path: Path, force: bool) -> None:
    ids = np.full((8, 8, 41), load_vocabulary().id("liver"), np.uint8)
    write_labels(LabelMap(ids, Grid.centered(ids.shape, (16.0, 16.0, 16.0))), tmp_path / "labels.nii.gz")
    path, small = tmp_path / "labels.nii.gz", LIMITS.model_copy(update={"max_spacing_mm": (16, 16, 16)})
    if not force:
        with pytest.raises(InvalidGridError, match=r"size 8 x 8 x 44 is above the 32 x 32 x 32.*--size chooses a part"):
            file_source(path, LabelRules(GridRules(small, 4)))
        return
    source = file_source(path, LabelRules(GridRules(small, 4, force=True)))
    assert (source.labels.array > 0).sum() == ids.size


def test_what_is_wrong_with_a_map_of_a_folder_names_its_file(tmp_path: Path) -> None:
    liver = np.full((8, 8, 8), load_vocabulary().id("liver"), np.uint8)
    grid = Grid.centered(liver.shape, (16.0, 16.0, 16.0))
    write_labels(LabelMap(liver, grid), tmp_path / "a.nii.gz")
    write_labels(LabelMap(np.zeros_like(liver), grid), tmp_path / "b.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"b\.nii\.gz: these labels tell no body region"):
        folder_sources(tmp_path, LabelRules(GridRules(LIMITS, 4)))
    long = np.full((8, 8, 41), load_vocabulary().id("liver"), np.uint8)
    write_labels(LabelMap(long, Grid.centered(long.shape, (16.0, 16.0, 16.0))), tmp_path / "b.nii.gz")
    with pytest.raises(InvalidGridError, match=r"b\.nii\.gz: size "):
        folder_sources(tmp_path, LabelRules(GridRules(LIMITS.model_copy(update={"max_spacing_mm": (16, 16, 16)}), 4)))


def test_a_part_of_the_labels_is_taken_where_a_size_says_so(tmp_path: Path) -> None:
    ids = np.full((8, 8, 41), load_vocabulary().id("liver"), np.uint8)
    write_labels(LabelMap(ids, Grid.centered(ids.shape, (16.0, 16.0, 16.0))), tmp_path / "labels.nii.gz")
    source = file_source(tmp_path / "labels.nii.gz", LabelRules(GridRules(LIMITS, 4, (8, 8, 32), (16.0, 16.0, 16.0))))
    assert source.grid.shape == (8, 8, 32)


def test_a_field_of_view_beyond_the_training_is_refused_with_the_range(bundle: Bundle) -> None:
    limits = LIMITS.model_copy(update={"min_fov_mm": (200, 200, 200), "max_fov_mm": (400, 400, 400)})
    narrow = dataclasses.replace(bundle, info=bundle.info.model_copy(update={"limits": limits}))
    with pytest.raises(InvalidGridError, match="field of view 200 x 200 x 200 to 400 x 400 x 400 mm"):
        next(generate(asked(size=(32, 16, 16)), narrow))
    with pytest.raises(InvalidGridError, match="field of view 256 x 256 x 128 mm is below the 200 x 200 x 200 mm"):
        next(generate(asked(size=(16, 16, 8)), narrow))


def test_without_a_size_the_region_is_covered() -> None:
    wide = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(5, 5, 5), max_size=(128, 128, 128))
    coarse, fine = (region_grid("chest", GridRules(wide, 8, spacing=(s, s, s))) for s in (5.0, 4.0))
    assert coarse.shape < fine.shape
    assert all(a >= 220 for a in coarse.fov_mm)


def test_given_labels_are_the_same_for_every_sample() -> None:
    labels = LabelMap(np.ones((4, 4, 4), np.uint8), Grid.centered((4, 4, 4), (2, 2, 2)))
    source = GivenLabels(labels, RegionSpan.named("head"))
    first, second = (source.draw(np.random.default_rng(seed), torch.Generator()) for seed in (0, 1))
    assert first.labels is second.labels is labels


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 15, 18)])
def test_a_codec_gives_back_the_grid_it_was_given(bundle: Bundle, shape: tuple[int, int, int]) -> None:
    volume = Volume(np.random.default_rng(0).normal(0, 200, shape).astype(np.float32), Grid.centered(shape, (3, 3, 3)))
    again = decode(bundle.autoencoder, encode(bundle.autoencoder, volume))
    assert again.grid.is_close(volume.grid)
    assert again.array.shape == shape


def test_the_encoder_repeats_the_last_plane_up_to_a_multiple_and_says_what_was_encoded(bundle: Bundle) -> None:
    shape = (15, 16, 14)
    volume = Volume(np.random.default_rng(0).normal(0, 200, shape).astype(np.float32), Grid.centered(shape, (3, 3, 3)))
    whole = np.pad(volume.array, [(0, 1), (0, 0), (0, 0)], mode="edge")
    latent = encode(bundle.autoencoder, volume, made_from="here")
    padded = encode(bundle.autoencoder, Volume(whole, Grid.centered((16, 16, 14), (3, 3, 3))), dtype=torch.float16)
    with torch.no_grad():
        mean, log_variance = bundle.autoencoder.encode(torch.from_numpy(to_unit(whole, "ct"))[None, None])
    assert torch.equal(latent.mean, mean)
    assert torch.equal(latent.log_variance, log_variance)
    assert torch.equal(padded.mean, mean.half())
    assert (latent.made_from, latent.content, latent.factor) == ("here", "volume", 2)
    assert latent.grid.is_close(volume.grid)


def test_an_autoencoder_of_label_maps_does_not_take_a_volume(bundle: Bundle) -> None:
    masks = Autoencoder(
        AutoencoderConfig(in_channels=8, out_channels=125, channels=(4,), num_res_blocks=(1,), norm_groups=2)
    )
    volume = Volume(np.zeros((4, 4, 4), np.float32), Grid.centered((4, 4, 4), (3, 3, 3)))
    with pytest.raises(InvalidRequestError, match="takes 8 channels and gives 125"):
        encode(masks, volume)
    latent = encode(bundle.autoencoder, volume)
    with pytest.raises(InvalidRequestError, match="takes 8 channels and gives 125"):
        decode(masks, latent)
    narrow = dataclasses.replace(latent, mean=latent.mean[:, :3], log_variance=latent.log_variance[:, :3])
    with pytest.raises(InvalidRequestError, match="3 channels, the autoencoder's have 4: another bundle"):
        decode(bundle.autoencoder, narrow)
    with pytest.raises(InvalidRequestError, match="of a label map"):
        decode(bundle.autoencoder, dataclasses.replace(latent, content="labels"))


def test_seed_and_index_alone_decide_a_samples_randomness() -> None:
    (a, _, b), (c, _, d) = sample_generators(5, 2), sample_generators(5, 2)
    assert a.random() == c.random()
    assert torch.equal(torch.randn(4, generator=b), torch.randn(4, generator=d))
    for other in (sample_generators(5, 3), sample_generators(5, 2, attempt=1)):
        assert not torch.equal(torch.randn(4, generator=other[2]), torch.randn(4, generator=sample_generators(5, 2)[2]))


def test_memory_is_kept_from_python_too(bundle: Bundle) -> None:
    with pytest.raises(InvalidPlanError, match=r"does not fit into 1\.0 MB"):
        generate(asked(memory="1MB"), bundle)
    (limited,), (free,) = generate(asked(memory="2GB"), bundle), generate(asked(), bundle)
    np.testing.assert_allclose(limited.volume.array, free.volume.array, atol=0.5)
    assert free.volume.array.std() > 10


def test_a_bundle_says_how_strongly_labels_steer_unless_the_request_does(bundle: Bundle) -> None:
    strong = dataclasses.replace(bundle, info=bundle.info.model_copy(update={"controlnet_scale": 1.5}))
    (said,), (asked_for,) = generate(asked(), strong), generate(asked(controlnet_scale=1.5), bundle)
    (usual,) = generate(asked(), bundle)
    assert np.array_equal(said.volume.array, asked_for.volume.array)
    assert not np.array_equal(said.volume.array, usual.volume.array)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bundle": "no-such-bundle"}, "no bundle 'no-such-bundle'"),
        ({"bundle": "ct-small"}, "the request names bundle 'ct-small', but bundle 'tiny' is given"),
        ({"device": "cuda:7"}, "there is no device cuda:7 here"),
        ({"precision": "bfloat16"}, "the request computes in bfloat16"),
        ({"modality": "mr"}, "not trained for modality 'mr'"),
        ({"region": "head"}, "not trained for head"),
        ({"steps": 2000}, "steps"),
    ],
)
def test_python_is_refused_what_the_command_line_is_refused(bundle: Bundle, more: dict, said: str) -> None:
    limits = LIMITS.model_copy(update={"regions": ("chest", "abdomen")})
    narrow = dataclasses.replace(bundle, info=bundle.info.model_copy(update={"limits": limits}))
    with pytest.raises(InvalidRequestError, match=said):
        generate(asked(**more), narrow)


def test_a_request_that_names_no_bundle_to_load_is_refused_without_one_too() -> None:
    with pytest.raises(InvalidBundleError, match="no bundle 'no-such-bundle'"):
        generate(asked(bundle="no-such-bundle"))


def test_images_without_labels_come_from_the_unet_alone(bundle: Bundle) -> None:
    (alone,) = generate(asked(unlabelled=True), bundle)
    assert alone.labels is None
    networks = {"autoencoder": bundle.autoencoder, "unet": bundle.unet}
    (same,) = generate(asked(unlabelled=True), Bundle.of(bundle.info, networks))
    np.testing.assert_array_equal(alone.volume.array, same.volume.array)


def test_a_bundle_that_was_not_trained_without_labels_is_not_asked_for_that_without_a_word(bundle: Bundle) -> None:
    limits = LIMITS.model_copy(update={"unlabelled": False})
    only = dataclasses.replace(bundle, info=bundle.info.model_copy(update={"limits": limits}))
    with pytest.raises(InvalidRequestError, match="they show no anatomy"):
        generate(asked(unlabelled=True), only)
    (forced,) = generate(asked(unlabelled=True, force=True), only)
    assert forced.labels is None


def test_a_bundle_without_controlnet_claims_no_labels(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = Bundle.of(bundle.info, {"autoencoder": bundle.autoencoder, "unet": bundle.unet})
    (sample,) = generate(asked(), only)
    assert sample.labels is None
    assert "has no ControlNet" in caplog.text
    with pytest.raises(InvalidBundleError, match="cannot follow labels"):
        generate(asked(labels=tmp_path / "any.nii.gz"), only)


def test_what_an_mr_is_asked_for_has_no_hounsfield_units(bundle: Bundle) -> None:
    (sample,) = generate(asked(modality="mr", force=True), bundle)
    assert sample.volume.modality == "mr"
    assert sample.volume.array.min() >= 0


@pytest.fixture(scope="module")
def strict(bundle: Bundle) -> Bundle:
    """The bundle held to all structures, which random weights do not draw."""
    limits = bundle.limits.model_copy(update={"held_to": None})
    return dataclasses.replace(bundle, info=bundle.info.model_copy(update={"limits": limits}))


def test_a_sample_that_fails_is_drawn_again_with_the_same_labels_until_the_tries_are_used_up(
    strict: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = generate(asked(region="abdomen", quality={"on_failure": "keep"}), strict)
    assert not first.quality.passed
    assert first.quality.tries == 1
    (last,) = generate(asked(region="abdomen", quality={"max_tries": 2}), strict)
    assert last.quality.tries == 2
    assert "no more tries" in caplog.text
    np.testing.assert_array_equal(first.labels.array, last.labels.array)
    assert not np.array_equal(first.volume.array, last.volume.array)


@dataclasses.dataclass(frozen=True)
class Faulty(LabelsOf):
    """A source of which each draw is as the list says: an error, a map that fails its check (None), else a good one."""

    draws: tuple[Exception | None, ...]
    drawn: list[int] = dataclasses.field(default_factory=list)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        self.drawn.append(len(self.drawn))
        fault = self.draws[self.drawn[-1]] if self.drawn[-1] < len(self.draws) else ""
        if isinstance(fault, Exception):
            raise fault
        anatomy = self.source.draw(rng, generator)
        if fault is None:
            anatomy.labels.array[:] = load_vocabulary().id("brain")
        return anatomy


CUT = InvalidRequestError("the border of the field of view cuts the liver")
LACKS = NotDrawnError("drew no gallbladder")


@pytest.mark.parametrize("draws", [(), (CUT,), (LACKS, CUT), (None, LACKS)])
def test_labels_of_networks_are_drawn_until_they_have_what_was_asked_and_pass(bundle: Bundle, draws: tuple) -> None:
    source = Faulty(validate_generate(asked(region="chest"), bundle).sources[0], draws)
    _, report = draw_labels(source, 0, 0, 4, load_vocabulary(), afresh=True)
    assert (report.passed, report.tries) == (True, len(draws) + 1)
    assert source.drawn == list(range(len(draws) + 1))


def test_what_never_passes_is_given_with_its_verdict_and_what_never_comes_is_an_error(bundle: Bundle) -> None:
    usual, draw = validate_generate(asked(region="chest"), bundle).sources[0], partial(draw_labels, seed=0, index=0)
    draw = partial(draw, tries=3, vocabulary=load_vocabulary())
    assert not draw(Faulty(usual, (LACKS, None, CUT)), afresh=True)[1].passed
    assert not draw(kept := Faulty(usual, (None,)), afresh=True, keeps=True)[1].passed
    assert kept.drawn == [0]
    with pytest.raises(NotDrawnError, match="no gallbladder"):
        draw(Faulty(usual, (CUT, CUT, LACKS)), afresh=True)
    with pytest.raises(InvalidRequestError, match="cuts the liver"):  # a phantom is refused at once
        draw(once := Faulty(usual, (CUT,)), afresh=False)
    assert once.drawn == [0]


def test_labels_for_a_ct_are_drawn_again_where_networks_draw_them(bundle: Bundle) -> None:
    valid = validate_generate(asked(region="chest"), bundle)
    silent = lambda stage, done, total: None  # noqa: E731
    by_networks = valid.request.model_copy(update={"label_bundle": "ct-labels"})
    assert draw_anatomy(by_networks, bundle, Faulty(valid.sources[0], (CUT,)), 0, silent).labels is not None
    with pytest.raises(InvalidRequestError, match="cuts the liver"):
        draw_anatomy(valid.request, bundle, Faulty(valid.sources[0], (CUT,)), 0, silent)


def test_a_repair_changes_the_latent_of_what_fails_alone(strict: Bundle) -> None:
    valid = validate_generate(asked(size=(32, 32, 32), spacing=(12.0, 12.0, 12.0)), strict)
    request, source = valid.request, valid.sources[0]
    silent = lambda stage, done, total: None  # noqa: E731
    anatomy = draw_anatomy(request, strict, source, 0, silent)
    seen = seen_labels(anatomy, strict)
    generators = [sample_generators(0, 0, attempt)[2] for attempt in (0, 1)]
    first = draw_latent(request, strict, anatomy, seen, generators[0], silent)
    free = region_of([load_vocabulary().id("heart")], anatomy.labels, strict.autoencoder.factor)
    assert 0 < int(free.sum()) < free.numel() / 2
    repaired = draw_latent(request, strict, anatomy, seen, generators[1], silent, Locked(first, free))
    torch.testing.assert_close(repaired[..., ~free], first[..., ~free])
    assert not torch.isclose(repaired[..., free], first[..., free]).any(dim=1).all()


@pytest.fixture(scope="module")
def guidable(bundle: Bundle) -> Bundle:
    """The bundle as if its training had dropped labels and modality at times."""
    return dataclasses.replace(bundle, info=bundle.info.model_copy(update={"dropped": ("labels", "modality")}))


def test_guidance_of_one_gives_the_bits_that_the_networks_give_without_any(guidable: Bundle) -> None:
    valid = validate_generate(asked(guidance_labels=1.0, guidance_conditions=1.0), guidable)
    request, bundle = valid.request, valid.bundle
    anatomy = valid.sources[0].draw(np.random.default_rng(0), torch.Generator())
    seen = seen_labels(anatomy, bundle)
    told = Conditioning(anatomy.span, anatomy.grid.spacing, "ct")
    noise = torch.randn((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(5))
    plain = sample(
        denoiser(
            bundle.unet,
            bundle.controlnet,
            conditions=encode_conditioning(told, bundle.unet.config),
            bits=label_bits(seen, torch.float32)[None],
        ),
        bundle.scheduler,
        noise.contiguous(memory_format=torch.channels_last_3d),
        request.steps,
    )
    quiet = torch.Generator().manual_seed(5)
    assert torch.equal(draw_latent(request, bundle, anatomy, seen, quiet, lambda *of_stage: None), plain)


@pytest.mark.parametrize(
    "asked_for", [{"guidance_labels": 2.0}, {"guidance_conditions": 2.0}, {"guidance_labels": 0.5, "memory": "2GB"}]
)
def test_guidance_changes_the_sample_within_memory_too(guidable: Bundle, asked_for: dict) -> None:
    keep = {"quality": {"on_failure": "keep"}}
    (plain,), (guided,) = generate(asked(**keep), guidable), generate(asked(**keep, **asked_for), guidable)
    assert not np.array_equal(plain.volume.array, guided.volume.array)
    whole = {name: value for name, value in asked_for.items() if name != "memory"}
    (again,) = generate(asked(**keep, **whole), guidable)
    np.testing.assert_allclose(again.volume.array, guided.volume.array, atol=0.5)


@pytest.mark.parametrize("name", ["guidance_labels", "guidance_conditions"])
def test_guidance_by_what_a_bundle_was_never_trained_without_is_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} is 2.*not trained both with and without.*accepted: 1"):
        validate_generate(asked(**{name: 2.0}), bundle)


def test_images_without_labels_are_not_guided_by_them() -> None:
    with pytest.raises(ValidationError, match="leave out guidance_labels"):
        asked(unlabelled=True, guidance_labels=2.0)


def test_a_rehearsal_calls_every_network_that_a_sample_calls_and_computes_nothing(bundle: Bundle) -> None:
    valid = validate_generate(asked(memory="2GB"), bundle)
    work = partial(rehearse, valid.request, valid.sources[0])
    calls = calls_of(bundle, torch.float32, work)
    assert list(calls) == ["controlnet.embed_condition", "controlnet", "unet", "autoencoder.decode"]
    assert calls["unet"].shape == (1, 4, 8, 8, 8)
    embedding_bytes = 4 * 8 * 8**3
    latent_bytes = 4 * 4 * 8**3
    assert calls["controlnet"].held_bytes == embedding_bytes + latent_bytes + 4 * (1 + 2)  # a time, a modality
    assert calls["autoencoder.decode"].held_bytes == latent_bytes
