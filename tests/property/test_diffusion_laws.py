"""Laws that hold for every schedule, time, size and number of steps."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import DDPM, DDPMConfig, NoiseScheduler, RectifiedFlow, RectifiedFlowConfig

quick = settings(max_examples=40, deadline=None)
ddpms = st.sampled_from(["epsilon", "velocity", "sample"]).map(lambda kind: DDPM(DDPMConfig(prediction=kind)))
flows = st.sampled_from([1, 16**3, 32**3, 64**3]).map(lambda n: RectifiedFlow(RectifiedFlowConfig(base_voxels=n)))
schedulers = ddpms | flows
voxels = st.integers(1, 128 * 128 * 192)
noisy_times = st.integers(1, 999)


def draw(seed: int, shape: tuple[int, ...] = (2, 3, 2, 2, 2)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(scheduler=schedulers, t=noisy_times, seed=st.integers(0, 99))
def test_prediction_and_clean_latent_are_each_others_inverse(scheduler: NoiseScheduler, t: int, seed: int) -> None:
    x, prediction = draw(seed), draw(seed + 100)
    clean = scheduler.predict_clean(x, prediction, t)
    assert torch.allclose(scheduler.prediction_of(x, clean, t), prediction, rtol=1e-6, atol=1e-6)


@quick
@given(scheduler=schedulers, start=noisy_times, middle=noisy_times, seed=st.integers(0, 99))
def test_a_step_on_a_known_path_may_be_cut_anywhere(
    scheduler: NoiseScheduler, start: int, middle: int, seed: int
) -> None:
    start, middle = max(start, middle), min(start, middle)
    clean, noise = draw(seed), draw(seed + 100)
    x = scheduler.add_noise(clean, noise, start)
    whole = scheduler.step(x, scheduler.target(clean, noise, start), start, 0)
    part = scheduler.step(x, scheduler.target(clean, noise, start), start, middle)
    cut = scheduler.step(part, scheduler.target(clean, noise, middle), middle, 0)
    assert torch.allclose(whole, cut, atol=1e-8)


@quick
@given(scheduler=schedulers, num_steps=st.integers(1, 1000), num_voxels=voxels)
def test_times_fall_from_the_noise_to_the_clean_latent(
    scheduler: NoiseScheduler, num_steps: int, num_voxels: int
) -> None:
    times = scheduler.timesteps(num_steps, num_voxels)
    assert len(times) == num_steps + 1
    assert bool((times.diff() < 0).all())
    signal, spread = scheduler.levels(times)
    assert bool((spread.diff() <= 0).all())
    assert float(spread[-1]) == 0.0
    assert float(signal[-1]) == 1.0


@quick
@given(num_steps=st.integers(1, 40), num_voxels=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_straight_flow_ends_where_it_should_for_any_grid_of_times(num_steps: int, num_voxels: int, seed: int) -> None:
    noise, end = draw(seed, (1, 2, num_voxels, 3, 2)), draw(seed + 100, (1, 2, num_voxels, 3, 2))
    for solver in ("euler", "multistep"):
        flow = RectifiedFlow(RectifiedFlowConfig(base_voxels=1))
        assert torch.allclose(sample(lambda x, t: end - noise, flow, noise, num_steps, solver=solver), end, atol=1e-10)


@quick
@given(scheduler=schedulers, num_steps=st.integers(1, 25), seed=st.integers(0, 99))
def test_a_network_that_knows_the_answer_is_followed_by_every_solver(
    scheduler: NoiseScheduler, num_steps: int, seed: int
) -> None:
    clean, noise = draw(seed), draw(seed + 100)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # float32 times reach a network; the schedule's own are met to a millionth
        return scheduler.prediction_of(x, clean, t.double())

    for solver in ("multistep", "euler", "ancestral"):
        generator = torch.Generator().manual_seed(seed)
        end = sample(denoise, scheduler, noise, num_steps, solver=solver, generator=generator)
        assert torch.allclose(end, clean, atol=1e-3)
