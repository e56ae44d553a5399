"""Batches of noisy latents: what is told of them, every schedule and loss, validation, and what a ControlNet adds."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import DDPMSpec, RectifiedFlowSpec, SchedulerSpec, build_scheduler
from maisi.data.latents import Latent, LatentExample, LatentSource
from maisi.diffusion.scheduler import DDPM, DDPMConfig, RectifiedFlow, RectifiedFlowConfig
from maisi.errors import InvalidRequestError, RunError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.conditioning import MODALITIES
from maisi.space.grid import Grid
from maisi.training.controlnet import ControlNetTraining, SteeredAnswers, starting_controlnet, train_controlnet
from maisi.training.denoising import ConditionDropout, Error, NoisyBatch, told
from maisi.training.diffusion import Denoising, DiffusionTraining, starting_unet, train_unet
from maisi.training.loop import LoopConfig
from maisi.training.lora import LoraConfig, base_digest, load_adapters, merge_adapters
from maisi.training.validation import HeldOut, Judged, Steered, ValidationConfig, middle_times, validation_losses

BACKBONE: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, False),
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 16,
}
UNET = UNetConfig(**BACKBONE, regions=True, spacing=True)
CPU = torch.device("cpu")
NAMES = load_vocabulary()
SPAN = RegionSpan.named("chest", "abdomen")
SPECS: list[SchedulerSpec] = [
    *(DDPMSpec(config=DDPMConfig(prediction=kind)) for kind in ("epsilon", "velocity", "sample")),
    *(
        RectifiedFlowSpec(config=RectifiedFlowConfig(time_distribution=times, resolution_shift=shift))
        for times, shift in (("uniform", False), ("uniform", True), ("logit-normal", False), ("logit-normal", True))
    ),
]


def latent(seed: int, shape: tuple[int, int, int] = (16, 16, 16), code: int = 1) -> Latent:
    """A latent half as large as its labels: liver with a tumour in it, in plain body."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn((1, 4, *(n // 2 for n in shape)), generator=draw)
    labels = torch.full(shape, NAMES.id("body"), dtype=torch.uint8)
    labels[:12] = NAMES.id("liver")
    labels[6:8, 6:8, 6:8] = NAMES.id("hepatic tumor")
    grid = Grid.centered(shape, (2.0, 2.0, 3.0))
    return Latent(mean, torch.full_like(mean, -9.0), grid, "ct", "volume", f"case {seed}", labels, SPAN, code)


def source(count: int = 3) -> LatentSource:
    return LatentSource([latent(seed) for seed in range(count)], {}, 2)


def recipe(**more: Any) -> DiffusionTraining:
    loop = LoopConfig(num_steps=2)
    return DiffusionTraining.model_validate(
        {"network": UNET, "loop": loop, "sizes": ((8, 8, 8),), "optimization": {"precision": "float32"}, **more}
    )


def steering(**more: Any) -> ControlNetTraining:
    controlnet = ControlNetConfig(**BACKBONE, embedding_widths=(4, 8))
    return ControlNetTraining.model_validate({**dict(recipe()), "controlnet": controlnet, **more})


def shaken(network: torch.nn.Module) -> Any:
    """The network with no weight at zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return network


def flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# --- what is told ---


def rows(dropout: ConditionDropout, code: int = 3, count: int = 400) -> dict[str, Tensor]:
    example = LatentExample(torch.zeros(1, 4, 2, 2, 2), None, (1.0, 2.0, 3.0), SPAN, code)
    return told([example] * count, dropout, UNET, np.random.default_rng(0))


@pytest.mark.parametrize("dropped", ["region", "spacing", "modality"])
def test_each_condition_is_dropped_by_itself(dropped: str) -> None:
    nothing = dict.fromkeys(("region", "spacing", "modality", "general_modality"), 0.0)
    found = rows(ConditionDropout(**{**nothing, dropped: 0.5}))
    unknown = {
        "region": (found["top_region"] == 0).all(1) & (found["bottom_region"] == 0).all(1),
        "spacing": (found["spacing"] == 0).all(1),
        "modality": found["modality"] == 0,
    }
    shares = {name: float(rows.double().mean()) for name, rows in unknown.items()}
    assert 0.4 < shares.pop(dropped) < 0.6  # four standard deviations of 400 throws
    assert set(shares.values()) == {0.0}
    kept = ~unknown[dropped]
    assert torch.equal(found["spacing"][kept], torch.tensor([[100.0, 200.0, 300.0]]).expand(int(kept.sum()), 3))
    assert found["top_region"][kept].sum(1).unique().tolist() == [100.0]


def test_drops_of_different_conditions_are_independent() -> None:
    found = rows(ConditionDropout(region=0.5, spacing=0.5, modality=0.5, general_modality=0.0))
    both = (found["top_region"] == 0).all(1) & (found["spacing"] == 0).all(1) & (found["modality"] == 0)
    assert 0.06 < float(both.double().mean()) < 0.19


@pytest.mark.parametrize(("code", "general"), [(2, 1), (3, 1), (9, 8), (15, 8), (1, 1), (8, 8), (7, 7), (0, 0)])
def test_a_kind_of_ct_or_mr_is_told_as_ct_or_mr_and_a_phantom_as_it_is(code: int, general: int) -> None:
    always = ConditionDropout(modality=0.0, general_modality=1.0)
    assert rows(always, code, 2)["modality"].tolist() == [general] * 2
    sometimes = rows(ConditionDropout(modality=0.0, general_modality=0.5), code)["modality"]
    assert set(sometimes.tolist()) == {code, general}
    assert MODALITIES["phantom"] == 7


# --- batches and losses ---


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(map(str, spec.config.model_dump().values())))
def test_every_schedule_of_a_recipe_gives_a_network_something_to_learn(spec: SchedulerSpec, tmp_path: Path) -> None:
    scheduler = build_scheduler(type(spec).model_validate(spec.model_dump(mode="json")))
    draw = torch.Generator().manual_seed(0)
    batch = NoisyBatch.drawn(source().draw(0, 0, 3), 1.1, scheduler, draw, CPU)
    torch.testing.assert_close(
        scheduler.predict_clean(batch.noisy, batch.target, batch.t), batch.clean, atol=1e-3, rtol=0
    )
    assert len(set(batch.t.tolist())) == 3
    losses: list[float] = []
    trained = train_unet(recipe(), source(), scheduler, 1.0, tmp_path, lambda n, found: losses.append(found["loss"]))
    assert np.isfinite(losses).all()
    assert bool(torch.isfinite(flat(trained)).all())


def test_a_batch_is_the_same_whenever_it_is_drawn_and_another_for_another_number() -> None:
    task = Denoising(recipe(batch_size=2), UNET, source(), RectifiedFlow(), 1.0)
    first, again, other = task.batch(4), task.batch(4), task.batch(5)
    assert torch.equal(first.noised.noisy, again.noised.noisy)
    assert all(torch.equal(first.conditions[name], again.conditions[name]) for name in first.conditions)
    assert not torch.equal(first.noised.noisy, other.noised.noisy)
    assert first.conditions["spacing"].shape == (2, 3)


def test_losses_are_those_of_their_names() -> None:
    a, b = (torch.randn(2, 3, 4, 1, 2, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    assert Error().of(a, b).mean() == F.l1_loss(a, b)
    assert Error(kind="l2").of(a, b).mean() == F.mse_loss(a, b)
    assert Error(kind="huber", huber_delta=0.5).of(a, b).mean() == F.huber_loss(a, b, delta=0.5)
    assert Error().of(a.bfloat16(), b).dtype == torch.float32


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_a_recipe_reaches_every_loss(kind: str) -> None:
    task = Denoising(recipe(loss=kind), UNET, source(), RectifiedFlow(), 1.0)
    batch = task.batch(0)
    assert task.loss(batch.noised.target, batch) == 0.0
    expected = {"l1": 3.0, "l2": 9.0, "huber": 2.5}[kind]
    assert float(task.loss(batch.noised.target + 3.0, batch)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_two_counts_each_structure_of_each_sample() -> None:
    config = recipe(batch_size=2, structure_weights={"tumours": 100.0})
    task = Denoising(config, UNET, source(), RectifiedFlow(), 1.0)
    batch = task.batch(0)
    error = torch.zeros_like(batch.noised.target)
    error[1, :, 3, 3, 3] = 1.0  # the tumour
    # 27 voxels of each sample are in or beside the tumour, the other 485 weigh 1
    assert float(task.loss(batch.noised.target + error, batch)) == pytest.approx(100 / (2 * (2700 + 485)), rel=1e-4)


def test_a_unet_learns_from_latents_without_labels(tmp_path: Path) -> None:
    bare = [dataclasses.replace(latent(seed), labels=None) for seed in range(2)]
    unlabelled = LatentSource(bare, {}, 2, labelled=False)
    trained = train_unet(recipe(), unlabelled, RectifiedFlow(), 1.0, tmp_path / "without")
    assert torch.equal(flat(trained), flat(train_unet(recipe(), source(2), RectifiedFlow(), 1.0, tmp_path / "with")))


def test_a_case_that_gives_nan_is_named_and_nothing_is_learned_from_it(tmp_path: Path) -> None:
    bad = latent(7)
    bad.mean[0, 0, 1, 1, 1] = torch.nan
    config = recipe(optimization={"precision": "float32", "most_skipped": 0})
    with pytest.raises(RunError, match=r"not finite, the last one step [12] on case 7, in float32 too"):
        train_unet(config, LatentSource([latent(0), bad], {}, 2), RectifiedFlow(), 1.0, tmp_path)


# --- validation ---


def judged(config: DiffusionTraining) -> Judged:
    task = Denoising(config, UNET, source(), RectifiedFlow(), 1.0)
    return Judged(UNET, task.scheduler, 1.0, config.error, CPU, lambda latent: torch.autocast("cpu", enabled=False))


def test_validation_repeats_itself_and_tells_times_apart(tmp_path: Path) -> None:
    config = ValidationConfig(cases=2, times=3)
    held_out = HeldOut.of(config, source(5), ((8, 8, 8), (4, 8, 8)), tmp_path)
    assert [example.latent.shape[2:] for example in held_out.examples] == [(8, 8, 8), (4, 8, 8)]
    assert len({example.name for example in held_out.examples}) == 2
    asked = question(steering())
    networks = Steered(asked.unet, asked.controlnet)
    look = held_out.looks(networks, judged(recipe()), 1)
    first, again = look(1), look(1)
    assert first == again
    assert list(first) == ["loss", "loss_t1", "loss_t2", "loss_t3"]
    assert first["loss"] == pytest.approx(np.mean([first[f"loss_t{k}"] for k in (1, 2, 3)]), abs=1e-5)
    assert len(set(first.values())) == 4
    alone = held_out.looks(Steered(networks.unet), judged(recipe()), 1)(1)
    assert alone != first


def test_validation_is_the_error_at_its_times(tmp_path: Path) -> None:
    held_out = HeldOut.of(ValidationConfig(cases=1, times=2), source(1), (), tmp_path)
    unet, (example,) = DenoisingUNet(UNET), held_out.examples  # fresh: its prediction is zero
    found = validation_losses([example], Steered(unet), judged(recipe(loss="l2")), 2)
    for part in range(2):
        noise = torch.randn(example.latent.shape, generator=torch.Generator().manual_seed(part))
        expected = float((example.latent - noise).square().mean())
        assert found[f"loss_t{part + 1}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("decoded", [False, True])
def test_a_training_looks_at_held_out_cases_and_draws_what_it_can(decoded: bool, tmp_path: Path) -> None:
    validation = {"cases": 1, "times": 1, "picture_every": 2, "picture_steps": 2}
    loop = LoopConfig(num_steps=2, validate_every=1, save_every=1)
    config = steering(validation=validation, loop=loop)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2))
    held_out = HeldOut.of(config.validation, source(1), (), tmp_path / "pictures", autoencoder if decoded else None)
    told: list[dict[str, float]] = []
    unet, at = shaken(DenoisingUNet(UNET)), tmp_path / "run"
    watched, _ = train_controlnet(
        config, unet, source(), RectifiedFlow(), 1.0, at, lambda n, found: told.append(dict(found)), held_out=held_out
    )
    unwatched, _ = train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "unwatched")
    assert torch.equal(flat(watched), flat(unwatched))
    looks = [found for found in told if "validation loss_t1" in found]
    assert len(looks) == 2
    assert all(np.isfinite(list(found.values())).all() for found in looks)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["step_0000002.png"]
    with Image.open(tmp_path / "pictures" / "step_0000002.png") as picture:
        assert picture.size[1] > 200 if decoded else picture.size == (32, 8)


@pytest.mark.parametrize("scheduler", [DDPM(), RectifiedFlow()])
def test_loss_times_lie_inside_the_schedule(scheduler: Any) -> None:
    times = middle_times(scheduler, 4, 512)
    assert times == sorted(times)
    assert len(set(times)) == 4
    assert 0 <= times[0] < times[-1] < 1000
    scheduler.levels(torch.tensor(times))


# --- where training starts ---


def test_training_starts_at_the_weights_that_are_given(tmp_path: Path) -> None:
    start = shaken(DenoisingUNet(UNET))
    before = base_digest(start)
    learned = train_unet(
        recipe(optimization={"precision": "float32", "learning_rate": 1e-9}),
        source(),
        RectifiedFlow(),
        1.0,
        tmp_path,
        start=start,
    )
    torch.testing.assert_close(flat(learned), flat(start), atol=1e-6, rtol=0)
    assert base_digest(start) == before


@pytest.mark.parametrize("steers", [False, True])
def test_adapters_learn_resume_and_end_in_plain_weights(steers: bool, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, targets=("middle.*", "conv_in"))
    more = {"start_from": "a bundle", "lora": lora, "optimization": {"learning_rate": 0.01, "precision": "float32"}}
    unet = shaken(DenoisingUNet(UNET))
    controlnet = shaken(starting_controlnet(steering(), unet, None))

    def train(folder: Path, until: int | None = None) -> torch.nn.Module:
        flow = RectifiedFlow()
        if not steers:
            return train_unet(recipe(**more), source(), flow, 1.0, folder, until=until, start=unet)
        config = steering(**more)
        return train_controlnet(config, unet, source(), flow, 1.0, folder, until=until, start=controlnet)[0]

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=1)
    assert torch.equal(flat(whole), flat(train(tmp_path / "parts")))
    start = controlnet if steers else unet
    changed = {n for n, p in whole.state_dict().items() if not torch.equal(p, start.state_dict()[n])}
    assert changed
    assert all(n.endswith(".weight") and n.startswith(("middle.", "conv_in")) for n in changed)
    again = copy.deepcopy(start)
    assert load_adapters(again, tmp_path / "whole" / "adapters.safetensors") == lora
    merge_adapters(again)
    assert torch.equal(flat(again), flat(whole))


def test_a_recipe_of_another_network_than_the_one_to_start_from_is_refused() -> None:
    unet = DenoisingUNet(UNET)
    with pytest.raises(InvalidRequestError, match="spacing of the U-Net to start from is True; the recipe says False"):
        starting_unet(UNET.model_copy(update={"spacing": False}), unet)
    assert starting_unet(None, unet).config == UNET
    other = steering(controlnet=ControlNetConfig(**BACKBONE, embedding_widths=(4, 4)))
    with pytest.raises(InvalidRequestError, match=r"embedding_widths of the ControlNet to start from is \(4, 8\)"):
        starting_controlnet(other, unet, starting_controlnet(steering(), unet, None))
    with pytest.raises(ValueError, match="lora needs start_from"):
        recipe(lora={})
    with pytest.raises(ValueError, match="leave out train_unet"):
        steering(lora={}, start_from="ct-small", train_unet=True)


def test_a_controlnet_that_starts_to_see_occupancies_answers_as_before() -> None:
    unet = shaken(DenoisingUNet(UNET))
    first = shaken(starting_controlnet(steering(occupancy=["hepatic tumor"]), unet, None))
    wider = steering(controlnet=first.config.model_copy(update={"occupancy_bits": True}), occupancy=["spleen"])
    second = starting_controlnet(wider, unet, first)
    assert second.config.occupancy_ids == (NAMES.id("hepatic tumor"), NAMES.id("spleen"))
    bits = (torch.rand(1, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    bits[:, :, :4] = label_bits(torch.full((1, 4, 8, 8), NAMES.id("hepatic tumor")))
    with torch.no_grad():
        torch.testing.assert_close(second.embed_condition(bits), first.embed_condition(bits))
    with pytest.raises(InvalidRequestError, match="occupancy_ids of the ControlNet to start from"):
        starting_controlnet(steering(), unet, second)


# --- steering ---


def question(config: ControlNetTraining, shake: bool = True) -> SteeredAnswers:
    torch.manual_seed(0)
    unet = shaken(DenoisingUNet(UNET))
    controlnet = starting_controlnet(config, unet, None)
    task = Denoising(config, UNET, source(), RectifiedFlow(), 1.0)
    return SteeredAnswers(config, task, unet, shaken(controlnet) if shake else controlnet)


def lost(asked: SteeredAnswers) -> dict[str, Tensor]:
    return asked.losses(asked.task.batch(0))


def test_the_contrast_joins_the_loss_with_its_weight() -> None:
    contrast = {"weight": 0.25, "delta": 5.0, "margin": 1}
    plain = lost(question(steering(batch_size=2)))
    losses = lost(question(steering(batch_size=2, contrast=contrast)))
    assert losses["foreground"] < 0
    expected = plain["loss"] + 0.25 * (losses["foreground"] + losses["background"])
    torch.testing.assert_close(losses["loss"], expected)


def test_without_a_lesion_a_batch_is_answered_once() -> None:
    asked = question(steering(contrast={"structures": ["lung tumor"]}))
    calls: list[int] = []
    asked.controlnet.register_forward_hook(lambda *_: calls.append(1))
    assert lost(asked)["foreground"] == 0.0
    assert len(calls) == 1


def test_a_dropped_map_says_nothing_to_a_controlnet_and_is_not_asked_of_it_where_the_unet_learns() -> None:
    for learns, count in ((False, 1), (True, 0)):
        asked = question(steering(drop_labels=0.999, train_unet=learns))
        calls: list[int] = []
        asked.controlnet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        seen: list[int] = []
        asked.controlnet.condition_embedding.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        lost(asked)
        assert (len(calls), len(seen)) == (count, 0)


def test_thinned_labels_reach_the_controlnet() -> None:
    task = question(steering(thin_labels={"probability": 1.0, "kept": [0.0, 0.0]}))
    labels = task.labels(task.task.batch(0))
    assert set(labels.unique().tolist()) == {NAMES.id("body"), NAMES.id("hepatic tumor")}


def test_occupancies_are_asked_for_by_name_and_start_silent() -> None:
    config = steering(occupancy=["adrenals", "my tumour"], classes={"my tumour": {"id": 154, "like": "hepatic tumor"}})
    assert starting_controlnet(config, DenoisingUNet(UNET), None).config.occupancy_ids == (
        *NAMES.group("adrenals"),
        154,
    )
    asked = question(config, shake=False)
    batch = asked.task.batch(0)
    with torch.no_grad():
        alone = asked.unet(batch.noisy, batch.t, **batch.conditions)
        assert torch.equal(asked.answer(batch, asked.labels(batch)), alone)


def test_a_controlnet_learns_with_all_of_it(tmp_path: Path) -> None:
    config = steering(
        batch_size=2,
        contrast={},
        occupancy=["hepatic tumor"],
        thin_labels={"probability": 0.5},
        structure_weights={"tumours": 100.0},
        drop_labels=0.2,
    )
    unet = shaken(DenoisingUNet(UNET))
    whole, _ = train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "whole")
    train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "parts", until=1)
    parts, _ = train_controlnet(config, unet, source(), RectifiedFlow(), 1.0, tmp_path / "parts")
    assert torch.equal(flat(whole), flat(parts))


def test_a_new_class_leaves_every_answer_to_old_maps_as_it_was() -> None:
    plain, more = question(steering()), question(steering(classes={"my tumour": {"like": "hepatic tumor"}}))
    assert torch.equal(flat(plain.controlnet), flat(more.controlnet))
    batch = plain.task.batch(0)
    with torch.no_grad():
        answers = [each.answer(batch, each.labels(batch)) for each in (plain, more)]
    assert torch.equal(*answers)


def test_a_new_class_weighs_like_a_structure() -> None:
    classes = {"my tumour": {"id": 154, "like": "hepatic tumor"}}
    assert 154 in recipe(classes=classes, structure_weights={"tumours": 9.0}).vocabulary.members("tumours")
    recipe(classes=classes, structure_weights={"my tumour": 9.0})
    with pytest.raises(ValueError, match="my tumour"):
        recipe(structure_weights={"my tumour": 9.0})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_steers_and_looks_as_the_processor_does(tmp_path: Path) -> None:
    more = {"contrast": {}, "occupancy": ["hepatic tumor"], "structure_weights": {"tumours": 9.0}, "batch_size": 2}
    loop = LoopConfig(num_steps=2, validate_every=1, save_every=1)
    config = steering(**more, loop=loop, start_from="given", lora={"rank": 2}, validation={"cases": 1, "times": 2})
    unet = shaken(DenoisingUNet(UNET))
    start = shaken(starting_controlnet(config, unet, None))
    found: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, losses in found.items():
        held_out = HeldOut.of(config.validation, source(1), (), tmp_path / device)
        train_controlnet(
            config.model_copy(update={"device": device}),
            unet,
            source(),
            RectifiedFlow(),
            1.0,
            tmp_path / device,
            lambda step, metrics, losses=losses: losses.append(
                metrics.get("loss", metrics.get("validation loss", 0.0))
            ),
            start=start,
            held_out=held_out,
        )
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-2)
