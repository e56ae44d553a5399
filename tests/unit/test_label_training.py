"""Training of a label generator at tiny size: it learns, and a killed run ends like one that was not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.slots import OPEN, full_volumes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import build_scheduler
from maisi.data.latents import LatentExample, LatentSource, latent_scale
from maisi.data.manifest import Case, write_manifest
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.phantom.draw import draw_phantom
from maisi.pipelines.label_codec import decode_labels, encode_labels, label_channels
from maisi.recipes.label_maps import (
    StoredMap,
    bent,
    channels_for,
    in_channels,
    make_maps,
    whole_labels,
    with_body,
    with_tumours,
)
from maisi.recipes.labels import LabelLesson, centred, labels_stage, make_label_latents, patches
from maisi.recipes.load import load_recipe
from maisi.recipes.recipe import BundleRecipe, LabelMapsRecipe
from maisi.runs.tasks.train import TrainRequest, check_labels
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap
from maisi.training.bits_start import start_at_bits
from maisi.training.denoising import ConditionDropout, told_sizes
from maisi.training.diffusion import train_unet
from maisi.training.labels import LabelPatches, balanced_cross_entropy, bits_of, mean_dice, train_label_autoencoder

VOCABULARY = load_vocabulary()
ID = VOCABULARY.id
GRID = Grid.centered((16, 16, 16), (20.0, 20.0, 20.0))
SETTINGS = {
    "name": "labels-test",
    "licence": "CC0-1.0",
    "labels": {
        "maps": {"size": (16, 16, 16), "spacing_mm": (20.0, 20.0, 20.0), "channels": "found", "num_phantoms": 4},
        "autoencoder": {
            "network": {"channels": (8, 8), "num_res_blocks": (1, 1), "norm_groups": 2, "upsampling": "transposed"},
            "loop": {"num_steps": 4, "save_every": 2},
            "optimization": {"learning_rate": 1e-2, "warmup": 2, "precision": "float32", "average_decay": 0.5},
            "patch": (16, 8, 16),
        },
        "diffusion": {
            "network": {
                "channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True), "head_channels": 8,
                "norm_groups": 4, "regions": True, "context_channels": 10,
            },
            "loop": {"num_steps": 4, "save_every": 2},
            "optimization": {"learning_rate": 1e-3, "warmup": 2, "precision": "float32"},
            "sizes": (),
            "drop": {"size": 0.3, "all_sizes": 0.1},
        },
    },
}  # fmt: skip


def recipe(**maps: object) -> BundleRecipe:
    labels = SETTINGS["labels"]
    return BundleRecipe.model_validate({**SETTINGS, "labels": {**labels, "maps": {**labels["maps"], **maps}}})  # type: ignore[dict-item,index]


def phantom(region: str = "abdomen", seed: int = 0, grid: Grid = GRID) -> LabelMap:
    return draw_phantom(region, grid, np.random.default_rng(seed))


def source() -> LabelPatches:
    maps = [phantom(seed=seed).array for seed in range(2)]
    channels = tuple(int(id) for id in np.unique(np.stack(maps)))
    return LabelPatches(maps, ["a", "b"], channels)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_an_autoencoder_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = recipe().for_labels().autoencoder
    whole = train_label_autoencoder(config, source(), tmp_path / "whole")
    train_label_autoencoder(config, source(), tmp_path / "parts", until=2)
    parts = train_label_autoencoder(config, source(), tmp_path / "parts")
    assert torch.equal(weights(whole), weights(parts))


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    config = recipe().for_labels().autoencoder
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"num_steps": 60, "validate_every": 60})})
    told: list[dict] = []
    train_label_autoencoder(config, source(), tmp_path, lambda step, m: told.append(dict(m)), validation=source())
    assert told[-2]["cross_entropy"] < 0.6 * told[0]["cross_entropy"]
    assert {"validation loss", "validation right", "validation dice"} <= set(told[-1])


def test_a_small_structure_weighs_more_with_balance_and_every_class_alike_at_one() -> None:
    targets = torch.zeros(1, 10, 10, 10, dtype=torch.long)
    targets[0, 0, 0, :2] = 1
    logits = torch.stack([torch.ones_like(targets), -torch.ones_like(targets)], 1).float()  # always class 0
    plain, half, whole = (float(balanced_cross_entropy(logits, targets, b)) for b in (0.0, 0.5, 1.0))
    assert plain < half < whole
    right, wrong = (float(torch.nn.functional.softplus(torch.tensor(x))) for x in (-2.0, 2.0))
    assert whole == pytest.approx((right + wrong) / 2, rel=1e-4)
    assert mean_dice(targets, targets) == 1.0
    assert mean_dice(torch.zeros_like(targets), targets) == 0.0


def test_a_whole_training_gives_a_bundle_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    lesson = LabelLesson.of(recipe(), None)
    whole = labels_stage(lesson, None, tmp_path / "whole", lambda name: None)

    def stop(name: str):
        def on_step(step: int, metrics: object) -> None:
            if name == "label diffusion" and step == 3:
                raise KeyboardInterrupt

        return on_step

    with pytest.raises(KeyboardInterrupt):
        labels_stage(lesson, None, tmp_path / "parts", stop)
    parts = labels_stage(lesson, None, tmp_path / "parts", lambda name: None)
    told = whole.info.label_generator
    assert told is not None
    assert told == parts.info.label_generator
    assert (told.size, told.lesions, told.open_sizes) == ((16, 16, 16), (), True)
    assert 0 in told.channels
    for name in ("label_autoencoder", "label_unet"):
        assert torch.equal(weights(whole.network(name)), weights(parts.network(name)))


def test_a_ddpm_learns_in_the_same_loop(tmp_path: Path) -> None:
    chosen = recipe().for_labels()
    maps = make_maps(chosen.maps, 0, (), tmp_path / "maps", 2)
    channels = channels_for(chosen.maps, maps)
    autoencoder = train_label_autoencoder(chosen.autoencoder, patches(maps, channels), tmp_path / "autoencoder")
    latents = make_label_latents(autoencoder, maps, channels, tmp_path / "latents")
    scheduler = build_scheduler(type(chosen).model_validate({**dict(chosen), "scheduler": {"kind": "ddpm"}}).scheduler)
    stored = LatentSource(latents, {}, 2)
    unet = train_unet(chosen.diffusion, stored, scheduler, latent_scale(latents), tmp_path / "unet")
    assert unet.config.context_channels == 10


def test_centred_latents_have_mean_zero_and_maps_do_not_change(tmp_path: Path) -> None:
    patches_ = source()
    network = train_label_autoencoder(recipe().for_labels().autoencoder, patches_, tmp_path).eval()
    moved, labels = centred(network, patches_), phantom()
    before, after = (encode_labels(each, labels, channels=patches_.channels) for each in (network, moved))
    assert float(before.mean.mean((0, 2, 3, 4)).abs().max()) > 1e-3
    mean = torch.stack(
        [encode_labels(moved, phantom(seed=s), channels=patches_.channels).mean.mean((0, 2, 3, 4)) for s in range(2)]
    )
    assert float(mean.mean(0).abs().max()) < 1e-4
    first, second = (
        decode_labels(a, latent, patches_.channels).array for a, latent in ((network, before), (moved, after))
    )
    assert (first == second).mean() > 0.999


def test_sizes_are_told_as_measured_and_left_open_as_often_as_asked() -> None:
    labels = phantom()
    ids, span = torch.from_numpy(labels.array), RegionSpan.named("abdomen")
    example = LatentExample(torch.zeros(1, 4, 8, 8, 8), ids, labels.grid.spacing, span, 0)
    told = told_sizes(example, ConditionDropout(), np.random.default_rng(0))
    assert 0 < told[list(full_volumes()).index("liver")] <= 1
    assert told[5:] == [-1.0] * 5
    rng = np.random.default_rng(1)
    dropped = np.array([told_sizes(example, ConditionDropout(size=0.3), rng) for _ in range(200)])
    assert 0.2 < (dropped == OPEN).mean() < 0.4
    all_open = told_sizes(example, ConditionDropout(all_sizes=1.0), rng)
    assert all_open == [OPEN] * 10


def test_cases_give_variations_of_the_regions_that_they_cover(tmp_path: Path) -> None:
    fine = Grid.centered((40, 32, 40), (10.0, 10.0, 10.0))
    write_labels(phantom(grid=fine), tmp_path / "labels.nii.gz")
    case = Case(id="p1", labels_maisi=tmp_path / "labels.nii.gz")
    settings = LabelMapsRecipe(size=(16, 16, 16), spacing_mm=(20.0, 20.0, 20.0), variations=2, least_structures=5)
    maps = make_maps(settings, 0, [case], tmp_path / "maps", 0)
    assert [each.name for each in maps] == ["p1__abdomen__000", "p1__abdomen__001"]
    first, second = (each.read().array for each in maps)
    assert not np.array_equal(first, second)
    assert ID("liver") in first
    times = {each.path: each.path.stat().st_mtime_ns for each in maps}
    again = make_maps(settings, 0, [case], tmp_path / "maps", 0)
    assert {each.path: each.path.stat().st_mtime_ns for each in again} == times


def test_a_case_that_shows_little_or_no_body_is_left_out_unless_one_is_drawn(tmp_path: Path) -> None:
    ids = phantom(grid=Grid.centered((24, 24, 24), (12.0, 12.0, 12.0))).array
    organs = np.where(np.isin(ids, [ID("body"), ID("fat"), ID("air")]), 0, ids).astype(np.uint8)
    grid = Grid.centered(ids.shape, (12.0, 12.0, 12.0))
    write_labels(LabelMap(organs, grid), tmp_path / "organs.nii.gz")
    case = Case(id="p1", labels_maisi=tmp_path / "organs.nii.gz")
    settings = LabelMapsRecipe(least_structures=5)
    assert whole_labels(settings, case) is None
    assert whole_labels(settings.model_copy(update={"least_structures": 500, "enclose": True}), case) is None
    assert whole_labels(settings.model_copy(update={"enclose": True}), case) is not None
    body = with_body(LabelMap(organs, grid)).array
    assert np.array_equal(body[organs > 0], organs[organs > 0])
    inside, drawn = ids > 0, body > 0
    assert 2 * (inside & drawn).sum() / (inside.sum() + drawn.sum()) > 0.8


def test_lesions_without_a_channel_become_their_host_and_the_rest_plain_body() -> None:
    ids = np.full((6, 6, 6), ID("liver"), np.uint8)
    ids[2:4, 2:4, 2:4] = ID("hepatic tumor")
    ids[0, 0, 0] = ID("spleen")
    found = in_channels(
        LabelMap(ids, Grid.centered(ids.shape, (5.0, 5.0, 5.0))), (0, ID("body"), ID("liver")), VOCABULARY
    )
    assert (found.array[2:4, 2:4, 2:4] == ID("liver")).all()
    assert found.array[0, 0, 0] == ID("body")
    assert channels_for(LabelMapsRecipe(), ()) == label_channels()


def test_of_the_structures_that_a_recipe_keeps_not_other_bones_become_skeleton(tmp_path: Path) -> None:
    settings = LabelMapsRecipe(channels="found", structures=("lungs", "heart", "left hip"), tumours={"lung tumor": 1.0})
    ids = np.full((6, 6, 6), ID("body"), np.uint8)
    shown = ("left lung upper lobe", "lung tumor", "heart", "aorta", "vertebrae T5", "left rib 3", "hepatic tumor")
    for place, name in enumerate(shown):
        ids[place % 6, place // 6] = ID(name)
    write_labels(LabelMap(ids, Grid.centered(ids.shape, (5.0, 5.0, 5.0))), tmp_path / "map.nii.gz")
    stored = StoredMap(tmp_path / "map.nii.gz", BodyRegion.CHEST, "map")
    channels = channels_for(settings, [stored])
    kept = ("left lung upper lobe", "lung tumor", "heart", "body", "skeleton")
    assert channels == tuple(sorted([0, *map(ID, kept)]))
    found = in_channels(stored.read(), channels, VOCABULARY).array
    taken = [int(found[place % 6, place // 6, 0]) for place in range(len(shown))]
    assert [VOCABULARY.name(id) for id in taken[:6]] == [*kept[:3], "body", "skeleton", "skeleton"]
    assert taken[6] in channels
    with pytest.raises(ValueError, match="toe"):
        LabelMapsRecipe(channels="found", structures=("toe",))
    with pytest.raises(ValueError, match="accepted: channels: found"):
        LabelMapsRecipe(structures=("lungs",))


def test_bending_moves_borders_a_little_and_invents_nothing() -> None:
    ids = phantom(grid=Grid.centered((32, 32, 32), (10.0, 10.0, 10.0))).array
    moved = bent(ids, (10.0, 10.0, 10.0), 8.0, np.random.default_rng(0))
    assert set(np.unique(moved)) <= set(np.unique(ids))
    assert 0.02 < (moved != ids).mean() < 0.4
    assert np.array_equal(bent(ids, (10.0, 10.0, 10.0), 0.0, np.random.default_rng(0)), ids)


def changed(**more: object) -> BundleRecipe:
    """The recipe with other settings of its U-Net."""
    told = recipe().model_dump(mode="json")
    told["labels"]["diffusion"] |= more
    return BundleRecipe.model_validate(told)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"recipe": recipe(num_phantoms=0)}, InvalidRequestError, "nothing to learn from; accepted: --manifest"),
        ({"recipe": recipe(), "latents": Path("x")}, InvalidRequestError, "learns from label maps"),
        ({"recipe": load_recipe("ct-small")}, InvalidConfigError, "says nothing of labels"),
        (
            {"recipe": changed(start_from="ct-small")},
            InvalidRequestError,
            r"diffusion\.start_from is not heeded",
        ),
        ({"recipe": changed(loop={"num_steps": 2, "validate_every": 1})}, InvalidRequestError, "is not heeded"),
    ],
)
def test_a_training_that_cannot_begin_is_refused(request_: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(TrainRequest(**request_))


def test_a_manifest_without_enough_labels_is_refused_when_maps_are_made(tmp_path: Path) -> None:
    write_manifest([Case(id="a", image=tmp_path / "a.nii.gz")], tmp_path / "manifest.jsonl")
    lesson = LabelLesson.of(recipe(num_phantoms=0), tmp_path / "manifest.jsonl")
    with pytest.raises(InvalidRequestError, match="no label map to learn from"):
        labels_stage(lesson, None, tmp_path / "run", lambda name: None)


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_packaged_recipes_say_how_a_label_generator_is_trained(name: str) -> None:
    chosen = load_recipe(name).for_labels()
    assert chosen.diffusion.network is not None
    assert chosen.diffusion.network.context_channels == len(full_volumes())
    assert all(n % 4 == 0 for n in chosen.maps.size)


def test_planted_tumours_are_learned_and_what_a_case_has_grown_is_not(tmp_path: Path) -> None:
    settings = LabelMapsRecipe(
        size=(40, 32, 32), spacing_mm=(10.0, 10.0, 10.0), channels="found", tumours={"hepatic tumor": 1.0}
    )
    grid = Grid.centered(settings.size, settings.spacing_mm)
    planted = with_tumours(settings, phantom(grid=grid), np.random.default_rng(0))
    assert (planted.array == ID("hepatic tumor")).any()
    head = phantom("head", grid=grid)
    assert np.array_equal(with_tumours(settings, head, np.random.default_rng(0)).array, head.array)
    grown = np.where(planted.array == ID("spleen"), np.uint8(ID("bone lesion")), planted.array)
    write_labels(LabelMap(grown, grid), tmp_path / "map.nii.gz")
    channels = channels_for(settings, [StoredMap(tmp_path / "map.nii.gz", BodyRegion.ABDOMEN, "map")])
    assert ID("hepatic tumor") in channels
    assert ID("bone lesion") not in channels
    with pytest.raises(ValueError, match="toe tumor"):
        LabelMapsRecipe(tumours={"toe tumor": 0.5})


@pytest.mark.parametrize("levels", [2, 3])
def test_an_autoencoder_that_starts_at_bits_reads_the_mean_of_each_bit_as_the_nearest_id(levels: int) -> None:
    width = (16, 24, 20)[:levels]
    channels = (0, ID("body"), ID("liver"), ID("spleen"), ID("right kidney"))
    config = AutoencoderConfig(
        in_channels=8, out_channels=len(channels), latent_channels=9, channels=width, num_res_blocks=(1,) * levels,
        norm_groups=1, norm_eps=100.0, upsampling="transposed",
    )  # fmt: skip
    torch.manual_seed(0)
    network = Autoencoder(config).eval()
    start_at_bits(network, channels)
    blocks = torch.tensor(channels, dtype=torch.uint8)[torch.randint(0, 5, (1, 4, 4, 4))]
    ids = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.inference_mode():
        mean, _ = network.encode(bits_of(ids))
        found = torch.tensor(channels)[network.decode(mean).argmax(1)]
    assert (found == ids).float().mean() > 0.999
    assert float(mean[:, 8:].abs().max()) < 1e-4
    with pytest.raises(InvalidConfigError, match="start: bits needs at least 16 channels"):
        start_at_bits(Autoencoder(config.model_copy(update={"latent_channels": 4})), channels)


def test_slabs_are_refused_where_nothing_is_divided_by_them() -> None:
    told = recipe().model_dump(mode="json")
    told["labels"]["autoencoder"]["optimization"] |= {"slabs": 2, "precision": "float32"}
    with pytest.raises(ValueError, match="an autoencoder of label maps is not divided by slabs"):
        BundleRecipe.model_validate(told)
