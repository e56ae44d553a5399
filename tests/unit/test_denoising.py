"""Batches of noisy latents: what is told of them, every schedule and loss, validation, and what a ControlNet adds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import DDPMSpec, RectifiedFlowSpec, SchedulerSpec, build_scheduler
from maisi.data.latents import Latent, LatentExample, LatentSource
from maisi.diffusion.scheduler import DDPM, DDPMConfig, RectifiedFlow, RectifiedFlowConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.conditioning import MODALITIES
from maisi.space.grid import Grid
from maisi.training.controlnet import ControlNetTraining, Steering, train_controlnet
from maisi.training.denoising import ConditionDropout, NoisyBatch, error_of, told
from maisi.training.diffusion import Denoising, DiffusionTraining, train_unet
from maisi.training.loop import LoopConfig
from maisi.training.validation import ValidationConfig, held_out, middle_times, validation_losses

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
        {"network": UNET, "loop": loop, "sizes": ((8, 8, 8),), "bfloat16": False, **more}
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
    first, again, other = task.lesson(4), task.lesson(4), task.lesson(5)
    assert torch.equal(first.batch.noisy, again.batch.noisy)
    assert all(torch.equal(first.conditions[name], again.conditions[name]) for name in first.conditions)
    assert not torch.equal(first.batch.noisy, other.batch.noisy)
    assert first.conditions["spacing"].shape == (2, 3)


def test_losses_are_those_of_their_names() -> None:
    a, b = (torch.randn(2, 3, 4, 1, 2, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    assert error_of(a, b, "l1").mean() == F.l1_loss(a, b)
    assert error_of(a, b, "mse").mean() == F.mse_loss(a, b)
    assert error_of(a, b, "huber").mean() == F.huber_loss(a, b)
    assert error_of(a.bfloat16(), b, "l1").dtype == torch.float32


@pytest.mark.parametrize("kind", ["l1", "mse", "huber"])
def test_a_recipe_reaches_every_loss(kind: str) -> None:
    task = Denoising(recipe(loss=kind), UNET, source(), RectifiedFlow(), 1.0)
    lesson = task.lesson(0)
    assert task.loss(lesson.batch.target, lesson) == 0.0
    expected = {"l1": 3.0, "mse": 9.0, "huber": 2.5}[kind]
    assert float(task.loss(lesson.batch.target + 3.0, lesson)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_two_counts_each_structure_of_each_sample() -> None:
    config = recipe(batch_size=2, structure_weights={"tumours": 100.0})
    task = Denoising(config, UNET, source(), RectifiedFlow(), 1.0)
    lesson = task.lesson(0)
    error = torch.zeros_like(lesson.batch.target)
    error[1, :, 3, 3, 3] = 1.0  # the tumour
    # 27 voxels of each sample are in or beside the tumour, the other 485 weigh 1
    assert float(task.loss(lesson.batch.target + error, lesson)) == pytest.approx(100 / (2 * (2700 + 485)), rel=1e-4)


# --- validation ---


def test_validation_repeats_itself_and_tells_times_apart() -> None:
    unet, scheduler, config = shaken(DenoisingUNet(UNET)).eval(), RectifiedFlow(), ValidationConfig(cases=2, times=3)
    examples = held_out(source(5), ((8, 8, 8), (4, 8, 8)), config.cases)
    assert [example.latent.shape[2:] for example in examples] == [(8, 8, 8), (4, 8, 8)]
    assert len({example.case for example in examples}) == 2

    def predict(batch: NoisyBatch, conditions: dict[str, Tensor], example: LatentExample) -> Tensor:
        return unet(batch.noisy, batch.t.float(), **conditions)

    first, again = (validation_losses(predict, examples, scheduler, 1.0, UNET, config, "l1", CPU) for _ in range(2))
    assert first == again
    assert list(first) == ["validation", "validation_t1", "validation_t2", "validation_t3"]
    assert first["validation"] == pytest.approx(np.mean([first[f"validation_t{k}"] for k in (1, 2, 3)]))
    right = validation_losses(lambda batch, *_: batch.target, examples, scheduler, 1.0, UNET, config, "l1", CPU)
    assert set(right.values()) == {0.0}


@pytest.mark.parametrize("scheduler", [DDPM(), RectifiedFlow()])
def test_validation_times_lie_inside_the_schedule(scheduler: Any) -> None:
    times = middle_times(scheduler, 4, 512)
    assert times == sorted(times)
    assert len(set(times)) == 4
    assert 0 <= times[0] < times[-1] < 1000
    scheduler.levels(torch.tensor(times))


# --- steering ---


def question(config: ControlNetTraining, shake: bool = True) -> Steering:
    torch.manual_seed(0)
    unet = shaken(DenoisingUNet(UNET))
    controlnet = ControlNet.from_unet(unet, config.seeing)
    task = Denoising(config, UNET, source(), RectifiedFlow(), 1.0)
    return Steering(config, task, unet, shaken(controlnet) if shake else controlnet)


def test_the_contrast_joins_the_loss_with_its_weight() -> None:
    contrast = {"weight": 0.25, "delta": 5.0, "margin": 1}
    plain = question(steering(batch_size=2)).losses(0)
    losses = question(steering(batch_size=2, contrast=contrast)).losses(0)
    assert losses["foreground"] < 0
    expected = plain["total"] + 0.25 * (losses["foreground"] + losses["background"])
    torch.testing.assert_close(losses["total"], expected)


def test_without_a_lesion_a_batch_is_answered_once() -> None:
    asked = question(steering(contrast={"structures": ["lung tumor"]}))
    calls: list[int] = []
    asked.controlnet.register_forward_hook(lambda *_: calls.append(1))
    assert asked.losses(0)["foreground"] == 0.0
    assert len(calls) == 1


def test_a_dropped_map_says_nothing_to_a_controlnet_and_is_not_asked_of_it_where_the_unet_learns() -> None:
    for learns, count in ((False, 1), (True, 0)):
        asked = question(steering(drop_labels=0.999, train_unet=learns))
        calls: list[int] = []
        asked.controlnet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        seen: list[int] = []
        asked.controlnet.condition_embedding.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        asked.losses(0)
        assert (len(calls), len(seen)) == (count, 0)


def test_thinned_labels_reach_the_controlnet() -> None:
    task = question(steering(thin_labels={"probability": 1.0, "kept": [0.0, 0.0]}))
    labels = task.labels(task.task.lesson(0))
    assert set(labels.unique().tolist()) == {NAMES.id("body"), NAMES.id("hepatic tumor")}


def test_occupancies_are_asked_for_by_name_and_start_silent() -> None:
    config = steering(occupancy=["adrenals", "my tumour"], classes={"my tumour": {"id": 154, "like": "hepatic tumor"}})
    assert config.seeing.occupancy_ids == (*NAMES.group("adrenals"), 154)
    asked = question(config, shake=False)
    lesson = asked.task.lesson(0)
    with torch.no_grad():
        alone = asked.unet(lesson.noisy, lesson.t, **lesson.conditions)
        assert torch.equal(asked.answer(lesson, asked.labels(lesson)), alone)


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
    lesson = plain.task.lesson(0)
    with torch.no_grad():
        answers = [each.answer(lesson, each.labels(lesson)) for each in (plain, more)]
    assert torch.equal(*answers)


def test_a_new_class_weighs_like_a_structure() -> None:
    classes = {"my tumour": {"id": 154, "like": "hepatic tumor"}}
    assert 154 in recipe(classes=classes, structure_weights={"tumours": 9.0}).vocabulary.members("tumours")
    recipe(classes=classes, structure_weights={"my tumour": 9.0})
    with pytest.raises(ValueError, match="my tumour"):
        recipe(structure_weights={"my tumour": 9.0})
