import math

import pytest
import torch
from pydantic import ValidationError

from maisi.diffusion.scheduler import (
    DDPM,
    DDPMConfig,
    NoiseScheduler,
    RectifiedFlow,
    RectifiedFlowConfig,
    _levels_like,
)
from maisi.errors import InvalidRequestError

SHAPE = (2, 4, 4, 4, 4)
UNSHIFTED = RectifiedFlow(RectifiedFlowConfig(resolution_shift=False))
SCHEDULERS = [
    DDPM(),
    DDPM(DDPMConfig(prediction="velocity")),
    DDPM(DDPMConfig(prediction="sample")),
    RectifiedFlow(),
]


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_is_a_noise_scheduler_and_cannot_be_changed(scheduler: NoiseScheduler) -> None:
    assert isinstance(scheduler, NoiseScheduler)
    with pytest.raises(AttributeError):
        scheduler.config = None


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_target_leads_back_to_the_clean_latent(scheduler: NoiseScheduler) -> None:
    clean, noise, t = normal(0), normal(1), torch.tensor([900.0, 10.0])
    x = scheduler.add_noise(clean, noise, t)
    target = scheduler.target(clean, noise, t)
    assert torch.allclose(scheduler.predict_clean(x, target, t), clean, atol=1e-9)
    assert torch.allclose(scheduler.prediction_of(x, clean, t), target, atol=1e-9)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_step_with_the_true_target_lands_on_the_same_path(scheduler: NoiseScheduler) -> None:
    clean, noise = normal(0), normal(1)
    x = scheduler.add_noise(clean, noise, 700)
    moved = scheduler.step(x, scheduler.target(clean, noise, 700), 700, 300)
    assert torch.allclose(moved, scheduler.add_noise(clean, noise, 300), atol=1e-9)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_last_time_is_the_clean_latent(scheduler: NoiseScheduler) -> None:
    times = scheduler.timesteps(7, 32**3)
    assert times.dtype == torch.float64
    assert len(times) == 8
    assert bool((times.diff() < 0).all())
    signal, spread = scheduler.levels(times[-1])
    assert (float(signal), float(spread)) == (1.0, 0.0)
    clean, noise = normal(0), normal(1)
    assert torch.equal(scheduler.add_noise(clean, noise, float(times[-1])), clean)


@pytest.mark.parametrize("ratio_voxels", [16**3, 32**3, 64**3, 128 * 128 * 192])
def test_flow_times_begin_and_end_exactly_whatever_the_resolution(ratio_voxels: int) -> None:
    for num_steps in (1, 7, 30, 333):
        times = RectifiedFlow().timesteps(num_steps, ratio_voxels)
        assert times[0] == 1000
        assert times[-1] == 0


def test_large_latents_spend_more_steps_near_the_noise() -> None:
    small, large = RectifiedFlow().timesteps(10, 32**3), RectifiedFlow().timesteps(10, 64**3)
    assert torch.allclose(small, torch.linspace(1000, 0, 11, dtype=torch.float64))
    assert float(large[5]) == pytest.approx(1000 * 2 * 0.5 / (1 + 0.5))


def test_a_flow_that_shifts_by_resolution_asks_for_the_number_of_voxels() -> None:
    with pytest.raises(InvalidRequestError, match="number of latent voxels"):
        RectifiedFlow().timesteps(10)
    assert len(UNSHIFTED.timesteps(10)) == 11


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_an_impossible_number_of_steps_is_refused(scheduler: NoiseScheduler, num_steps: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"1 to 1000, not {num_steps}"):
        scheduler.timesteps(num_steps, 32**3)


@pytest.mark.parametrize("t", [-2, 1000, 3.5, float("nan")])
def test_ddpm_refuses_times_it_was_not_trained_on(t: float) -> None:
    with pytest.raises(InvalidRequestError, match="integers from -1 to 999"):
        DDPM().levels(t)


@pytest.mark.parametrize("t", [-0.1, 1000.1, float("nan")])
def test_a_flow_refuses_times_outside_its_range(t: float) -> None:
    with pytest.raises(InvalidRequestError, match="from 0 to 1000"):
        RectifiedFlow().levels(t)


def test_times_that_do_not_fit_the_batch_are_refused(unchecked: None) -> None:
    with pytest.raises(InvalidRequestError, match="3 times for a batch of 2"):
        RectifiedFlow().add_noise(normal(0), normal(1), torch.tensor([1.0, 2.0, 3.0]))


def test_ancestral_steps_draw_the_posterior_of_the_clean_latent() -> None:
    """Equations 6 and 7 of Ho et al. (2020), for one strided pair of times too."""
    ddpm, t = DDPM(DDPMConfig(prediction="sample")), 600
    x, clean = torch.full((1, 1, 50, 50, 80), 0.8, dtype=torch.float64), 0.3
    for t_next in (t - 1, 400):
        drawn = ddpm.step(x, torch.full_like(x, clean), t, t_next, torch.Generator().manual_seed(0), eta=1.0)
        (a, s), (a_next, s_next) = (tuple(map(float, ddpm.levels(v))) for v in (t, t_next))
        relative = a / a_next
        added = 1 - relative**2
        mean = (a_next * added * clean + relative * s_next**2 * 0.8) / s**2
        assert float(drawn.mean()) == pytest.approx(mean, abs=5e-3)
        assert float(drawn.var()) == pytest.approx(added * s_next**2 / s**2, rel=2e-2)


def test_a_random_step_needs_its_source() -> None:
    with pytest.raises(InvalidRequestError, match="give it a generator"):
        DDPM().step(normal(0), normal(1), 500, 499, eta=1.0)


def test_the_last_ancestral_step_draws_nothing() -> None:
    x, prediction = normal(0), normal(1)
    ddpm = DDPM()
    last = ddpm.step(x, prediction, 0, -1, torch.Generator().manual_seed(0), eta=1.0)
    assert torch.equal(last, ddpm.predict_clean(x, prediction, 0))


def test_training_times_come_from_the_generator_and_fill_the_range() -> None:
    for scheduler in SCHEDULERS:
        times = scheduler.sample_times(20_000, torch.Generator().manual_seed(3), 32**3)
        assert torch.equal(times, scheduler.sample_times(20_000, torch.Generator().manual_seed(3), 32**3))
        assert times.dtype == torch.float64
        assert float(times.min()) >= 0
        assert float(times.max()) <= scheduler.num_train_steps
        assert float(times.mean()) == pytest.approx(500, abs=8)


def test_training_times_follow_the_resolution_and_the_distribution() -> None:
    uniform = RectifiedFlow().sample_times(20_000, torch.Generator().manual_seed(3), 64**3)
    assert float(uniform.median()) == pytest.approx(2000 / 3, abs=8)
    config = RectifiedFlowConfig(time_distribution="logit-normal", logit_mean=0.5, logit_std=0.8)
    drawn = RectifiedFlow(config).sample_times(20_000, torch.Generator().manual_seed(3), 32**3) / 1000
    logits = torch.logit(drawn)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(logits.std()) == pytest.approx(0.8, abs=0.02)


def test_upstream_times_overshoot_the_data_and_ours_do_not() -> None:
    for voxels, overshoot in ((32**3, 1.0102), (64**3, 1.0096), (128**3, 1.0087)):
        upstream = sum(t - t_next for t, t_next in RectifiedFlow().upstream_steps(30, voxels)) / 1000
        assert upstream == pytest.approx(overshoot, abs=1e-4)
        assert float(-RectifiedFlow().timesteps(30, voxels).diff().sum()) == pytest.approx(1000, abs=1e-9)


def test_the_released_betas_leave_the_published_signal() -> None:
    signal, _ = DDPM().levels(999)
    assert float(signal) ** 2 == pytest.approx(1.423e-4, rel=1e-3)
    assert math.isclose(float(DDPM().betas[0]), 0.0015)
    assert math.isclose(float(DDPM(DDPMConfig(schedule="linear")).betas[500]), 0.0015 + 0.018 * 500 / 999)


def test_noise_stays_in_the_precision_of_the_latent() -> None:
    clean = normal(0).bfloat16()
    for scheduler in SCHEDULERS:
        assert scheduler.add_noise(clean, clean, torch.tensor([5.0, 800.0])).dtype == torch.bfloat16


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="beta_end"):
        DDPMConfig(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ValidationError, match="scale"):
        RectifiedFlowConfig(scale=1.4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_levels_of_a_time_for_the_whole_batch_stay_on_the_host(scheduler: NoiseScheduler) -> None:
    x = torch.empty(2, 4, 8, 8, 8, device="meta")
    assert {level.device.type for level in _levels_like(scheduler, 500.0, x)} == {"cpu"}
    assert scheduler.predict_clean(x, x, 500.0).is_meta
