"""Noise schedules against MONAI 1.6.1: noise, targets, times, steps and whole sampling runs."""

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler

from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import DDPM, DDPMConfig, RectifiedFlow, RectifiedFlowConfig

SHAPE = (2, 4, 8, 8, 4)
PREDICTIONS = {"epsilon": "epsilon", "velocity": "v_prediction", "sample": "sample"}
LATENT_SIZES = [
    (16, 16, 16),
    (32, 32, 32),
    (40, 40, 24),
    (64, 64, 64),
    (128, 128, 32),
    (128, 128, 128),
    (128, 128, 192),
]


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def their_ddpm(prediction: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        1000,
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
        prediction_type=PREDICTIONS[prediction],
    )


def their_flow(**changes: object) -> RFlowScheduler:
    released = {"use_discrete_timesteps": False, "use_timestep_transform": True, "sample_method": "uniform"}
    return RFlowScheduler(num_train_timesteps=1000, scale=1.4, **(released | changes))


def fake_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Nonlinear in the latent and the time, like a network, and the same on both sides."""
    t = t.float().reshape(-1, 1, 1, 1, 1) / 1000
    return torch.tanh(x.roll(1, 2) + 0.3 * t) - 0.5 * x * t


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
def test_ddpm_noise_and_targets_agree(prediction: str) -> None:
    clean, noise, t = draw(0), draw(1), torch.tensor([3, 987])
    theirs, ours = their_ddpm(prediction), DDPM(DDPMConfig(prediction=prediction))
    assert relative_error(ours.add_noise(clean, noise, t), theirs.add_noise(clean, noise, t)) < 2e-6
    target = {"epsilon": noise, "sample": clean, "velocity": theirs.get_velocity(clean, noise, t)}[prediction]
    assert relative_error(ours.target(clean, noise, t), target) < 2e-6


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("t", [999, 998, 500, 17, 1, 0])
def test_ancestral_steps_between_consecutive_times_agree(prediction: str, t: int) -> None:
    x, output = draw(0), draw(1)
    theirs, ours = their_ddpm(prediction), DDPM(DDPMConfig(prediction=prediction))
    tolerance = 2e-5 if t < 2 else 2e-6  # near the clean end 1 - alpha_bar of MONAI's float32 table is off by 1e-5
    step, clean = theirs.step(output, t, x, generator=torch.Generator().manual_seed(5))
    assert relative_error(ours.step(x, output, t, t - 1, torch.Generator().manual_seed(5), eta=1.0), step) < tolerance
    assert relative_error(ours.predict_clean(x, output, t), clean) < tolerance


def test_ddpm_times_agree_for_every_number_of_steps() -> None:
    theirs, ours = their_ddpm(), DDPM()
    for num_steps in range(1, 1001):
        theirs.set_timesteps(num_steps)
        assert theirs.timesteps.tolist() == ours.timesteps(num_steps)[:-1].tolist()


@pytest.mark.parametrize("num_steps", [30, 1000])
def test_a_whole_ancestral_run_agrees(num_steps: int) -> None:
    """In float64: over a thousand steps of a nonlinear field, rounding of float32 would grow."""
    theirs, generator = their_ddpm(), torch.Generator().manual_seed(9)
    theirs.set_timesteps(num_steps)
    x = draw(0).double()
    for t in theirs.timesteps:
        x, _ = theirs.step(fake_network(x, t.expand(2)), int(t), x, generator=generator)
    ours = sample(
        fake_network,
        DDPM(),
        draw(0).double(),
        num_steps,
        solver="ancestral",
        generator=torch.Generator().manual_seed(9),
        upstream_times=True,
    )
    assert relative_error(ours, x) < 1e-4


def test_flow_noise_and_target_agree() -> None:
    clean, noise, t = draw(0), draw(1), torch.tensor([12.5, 960.25])
    assert relative_error(RectifiedFlow().add_noise(clean, noise, t), their_flow().add_noise(clean, noise, t)) < 1e-6
    assert torch.equal(RectifiedFlow().target(clean, noise, t), clean - noise)  # upstream's training script


@pytest.mark.parametrize("size", LATENT_SIZES)
def test_upstream_flow_times_are_equal_bit_by_bit(size: tuple[int, int, int]) -> None:
    voxels = torch.prod(torch.tensor(size))
    for shift in (True, False):
        theirs = their_flow(use_timestep_transform=shift)
        ours = RectifiedFlow(RectifiedFlowConfig(resolution_shift=shift))
        for num_steps in [*range(1, 60), 100, 250, 999, 1000]:
            theirs.set_timesteps(num_steps, input_img_size_numel=voxels)
            assert theirs.timesteps.dtype == torch.float16
            assert theirs.timesteps.tolist() == [t for t, _ in ours.upstream_steps(num_steps, int(voxels))]


def test_our_flow_times_are_upstreams_before_rounding() -> None:
    theirs = their_flow()
    for size in LATENT_SIZES:
        voxels = torch.prod(torch.tensor(size))
        theirs.set_timesteps(30, input_img_size_numel=voxels)
        exact = RectifiedFlow().timesteps(30, int(voxels))[:-1]
        assert float((theirs.timesteps.double() - exact).abs().max()) <= 0.2501


@pytest.mark.parametrize("size", LATENT_SIZES)
def test_uniform_training_times_agree_after_the_shift(size: tuple[int, int, int]) -> None:
    torch.manual_seed(7)
    theirs = their_flow().sample_timesteps(torch.zeros(()).expand(64, 1, *size))
    ours = RectifiedFlow().sample_times(64, torch.Generator().manual_seed(7), size[0] * size[1] * size[2])
    assert float((ours - theirs).abs().max()) < 1e-3


def test_logit_normal_training_times_have_upstreams_law() -> None:
    torch.manual_seed(7)
    latents = torch.zeros(()).expand(40_000, 1, 32, 32, 32)
    theirs = their_flow(sample_method="logit-normal", loc=0.3).sample_timesteps(latents)
    config = RectifiedFlowConfig(time_distribution="logit-normal", logit_mean=0.3, logit_std=1.4)
    ours = RectifiedFlow(config).sample_times(40_000, torch.Generator().manual_seed(1), 32**3)
    levels = torch.linspace(0.05, 0.95, 19)
    gap = torch.quantile(ours, levels.double()) - torch.quantile(theirs, levels).double()
    assert float(gap.abs().max()) < 12


def test_one_flow_step_and_its_clean_prediction_agree() -> None:
    theirs, x, velocity = their_flow(), draw(0), draw(1)
    theirs.set_timesteps(30, input_img_size_numel=32**3)
    step, clean = theirs.step(velocity, 800.0, x, 750)
    assert torch.equal(RectifiedFlow().step(x, velocity, 800.0, 750.0), step)
    assert relative_error(RectifiedFlow().predict_clean(x, velocity, 800.0), clean) < 1e-6


@pytest.mark.parametrize("num_steps", [5, 30, 50])
def test_a_whole_flow_run_agrees_with_upstream_times(num_steps: int) -> None:
    theirs = their_flow()
    theirs.set_timesteps(num_steps, input_img_size_numel=torch.prod(torch.tensor(SHAPE[2:])))
    x = draw(0)
    for t, t_next in zip(theirs.timesteps, [*theirs.timesteps[1:], 0], strict=True):
        x, _ = theirs.step(fake_network(x, t.expand(2)), t, x, t_next)
    ours = sample(fake_network, RectifiedFlow(), draw(0), num_steps, solver="euler", upstream_times=True)
    assert torch.equal(ours, x)
