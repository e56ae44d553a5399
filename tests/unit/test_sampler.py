"""Sampling against probability-flow equations whose solution is known in closed form."""

from collections.abc import Callable

import pytest
import torch

from maisi.diffusion.sampler import sample
from maisi.diffusion.scheduler import DDPM, DDPMConfig, NoiseScheduler, RectifiedFlow, RectifiedFlowConfig
from maisi.errors import InvalidRequestError, RunError

SHAPE = (3, 2, 4, 4, 4)
FLOW = RectifiedFlow(RectifiedFlowConfig(resolution_shift=False))
FINE_DDPM = DDPM(DDPMConfig(num_train_steps=200_000, beta_start=0.0015 / 200, beta_end=0.0195 / 200))


class QuadraticTimes:
    """DDPM with times that lie dense near the clean latent, where its noise falls as the root of the time."""

    def __init__(self, ddpm: DDPM) -> None:
        self.ddpm = ddpm

    def __getattr__(self, name: str) -> object:
        return getattr(self.ddpm, name)

    def timesteps(self, num_steps: int, num_voxels: int | None = None) -> torch.Tensor:
        fraction = torch.linspace(1, 0, num_steps, dtype=torch.float64)
        return torch.cat([((self.num_train_steps - 1) * fraction**2).round(), torch.tensor([-1.0])])


def noise(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(scheduler: NoiseScheduler, mean: float, deviation: float) -> Callable:
    """The perfect network for latents distributed as N(mean, deviation^2)."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, spread = (float(level) for level in scheduler.levels(round(float(t[0]), 3)))
        gain = deviation**2 * signal / (signal**2 * deviation**2 + spread**2)
        return scheduler.prediction_of(x, mean + gain * (x - signal * mean), float(t[0]))

    return denoise


def gaussian_end(scheduler: NoiseScheduler, x: torch.Tensor, t: float, mean: float, deviation: float) -> torch.Tensor:
    """Where the probability flow takes `x` at `t`: it keeps the number of standard deviations from the mean."""
    signal, spread = (float(level) for level in scheduler.levels(t))
    return mean + deviation * (x - signal * mean) / (signal**2 * deviation**2 + spread**2) ** 0.5


def error(scheduler: NoiseScheduler, num_steps: int, solver: str) -> float:
    start = noise()
    t = float(scheduler.timesteps(num_steps, 64)[0])
    end = sample(gaussian(scheduler, 0.4, 0.6), scheduler, start, num_steps, solver=solver)
    return float((end - gaussian_end(scheduler, start, t, 0.4, 0.6)).pow(2).mean().sqrt())


@pytest.mark.parametrize(
    "scheduler",
    [FLOW, RectifiedFlow(), QuadraticTimes(FINE_DDPM)],
    ids=["flow", "shifted flow", "ddpm"],
)
def test_multistep_is_of_second_order_and_euler_of_first(scheduler: NoiseScheduler) -> None:
    coarse, fine = 64, 256
    for solver, order in (("euler", 1), ("multistep", 2)):
        measured = torch.tensor(error(scheduler, coarse, solver) / error(scheduler, fine, solver)).log2() / 2
        assert float(measured) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("scheduler", [FLOW, DDPM()], ids=["flow", "ddpm"])
def test_ten_multistep_steps_beat_thirty_euler_steps(scheduler: NoiseScheduler) -> None:
    assert error(scheduler, 10, "multistep") < error(scheduler, 30, "euler")


@pytest.mark.parametrize("solver", ["multistep", "euler"])
@pytest.mark.parametrize("num_steps", [1, 2, 9, 30])
def test_a_straight_flow_lands_on_its_end(solver: str, num_steps: int) -> None:
    start, end = noise(0), noise(1)
    landed = sample(lambda x, t: end - start, RectifiedFlow(), start, num_steps, solver=solver)
    assert torch.allclose(landed, end, atol=1e-12)


def test_upstream_times_overshoot_a_straight_flow_by_one_percent() -> None:
    start, end = noise(0), noise(1)
    flow = RectifiedFlow(RectifiedFlowConfig(base_voxels=4**3))
    landed = sample(lambda x, t: end - start, flow, start, 30, solver="euler", upstream_times=True)
    travelled = ((landed - start) / (end - start)).mean()
    assert float(travelled) == pytest.approx(1.0102, abs=1e-4)


def test_one_multistep_step_is_the_euler_step() -> None:
    for scheduler in (FLOW, DDPM()):
        denoise = gaussian(scheduler, 0.4, 0.6)
        ours = sample(denoise, scheduler, noise(), 1)
        assert torch.allclose(ours, sample(denoise, scheduler, noise(), 1, solver="euler"), atol=1e-12)


def test_ancestral_sampling_draws_the_data_distribution() -> None:
    ddpm = DDPM()
    many = torch.randn((500, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sample(
        gaussian(ddpm, 0.4, 0.6), ddpm, many, 250, solver="ancestral", generator=torch.Generator().manual_seed(1)
    )
    assert float(drawn.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.6, abs=0.02)


def test_ancestral_sampling_of_a_flow_draws_the_data_distribution_too() -> None:
    many = torch.randn((500, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    drawn = sample(gaussian(FLOW, 0.4, 0.6), FLOW, many, 250, solver="ancestral", generator=generator)
    assert float(drawn.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.6, abs=0.02)


def test_the_same_generator_seed_gives_the_same_ancestral_sample() -> None:
    ddpm = DDPM()

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(gaussian(ddpm, 0, 1), ddpm, noise(), 5, solver="ancestral", generator=generator)

    assert torch.equal(draw(4), draw(4))
    assert not torch.equal(draw(4), draw(5))


def test_the_network_is_called_once_a_step_with_the_time_of_every_sample() -> None:
    seen, told = [], []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return torch.zeros_like(x)

    sample(denoise, FLOW, noise(dtype=torch.float32), 4, on_step=lambda done, total: told.append((done, total)))
    assert [t.tolist() for t in seen] == [[v] * 3 for v in (1000.0, 750.0, 500.0, 250.0)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_sampling_keeps_shape_and_precision_and_no_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    for dtype in (torch.float32, torch.float64):
        end = sample(lambda x, t: weight * x, FLOW, noise(dtype=dtype), 3)
        assert end.shape == SHAPE
        assert end.dtype == dtype
        assert not end.requires_grad


def test_a_network_that_answers_nan_is_an_error_and_not_a_black_volume() -> None:
    with pytest.raises(RunError, match="NaN or infinity"):
        sample(lambda x, t: x * float("nan"), FLOW, noise(), 3)


def test_an_impossible_sampling_request_is_refused(unchecked: None) -> None:
    with pytest.raises(InvalidRequestError, match="multistep, euler, ancestral"):
        sample(torch.zeros_like, FLOW, noise(), 3, solver="heun")
    with pytest.raises(InvalidRequestError, match="'euler' or 'ancestral'"):
        sample(torch.zeros_like, FLOW, noise(), 3, upstream_times=True)
    with pytest.raises(InvalidRequestError, match="give it a generator"):
        sample(lambda x, t: x, FLOW, noise(), 3, solver="ancestral")


SCHEDULES = pytest.mark.parametrize("scheduler", [DDPM(), FLOW], ids=["ddpm", "flow"])


def states(
    scheduler: NoiseScheduler, x: torch.Tensor, num_steps: int, **more: object
) -> list[tuple[torch.Tensor, float]]:
    """What is handed to the hook: the latent after each step and its time."""
    seen: list[tuple[torch.Tensor, float]] = []

    def remember(latent: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((latent, t))
        return latent

    end = sample(gaussian(scheduler, 0.4, 0.6), scheduler, x, num_steps, after_step=remember, **more)
    assert torch.equal(end, seen[-1][0])
    return seen


@SCHEDULES
@pytest.mark.parametrize("solver", ["multistep", "euler", "ancestral"])
def test_starting_at_the_first_time_is_the_whole_run(scheduler: NoiseScheduler, solver: str) -> None:
    def end(start: float | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return sample(
            gaussian(scheduler, 0.4, 0.6), scheduler, noise(), 7, solver=solver, start=start, generator=generator
        )

    assert torch.equal(end(float(scheduler.timesteps(7, 64)[0])), end(None))


@SCHEDULES
def test_the_hook_sees_the_latent_of_every_time_of_the_schedule(scheduler: NoiseScheduler) -> None:
    assert [t for _, t in states(scheduler, noise(), 7)] == scheduler.timesteps(7, 64)[1:].tolist()


@SCHEDULES
@pytest.mark.parametrize("upstream_times", [False, True])
def test_a_run_from_the_middle_is_the_rest_of_the_whole_run(scheduler: NoiseScheduler, upstream_times: bool) -> None:
    options = {"solver": "euler", "upstream_times": upstream_times}
    whole = states(scheduler, noise(), 9, **options)
    start = scheduler.upstream_steps(9, 64)[4][0] if upstream_times else whole[3][1]
    rest = states(scheduler, whole[3][0], 9, start=start, **options)
    assert [t for _, t in rest] == [t for _, t in whole[4:]]
    for (ours, _), (theirs, _) in zip(rest, whole[4:], strict=True):
        assert torch.equal(ours, theirs)


@SCHEDULES
@pytest.mark.parametrize("solver", ["multistep", "euler"])
def test_a_run_may_start_between_two_times_of_the_schedule(scheduler: NoiseScheduler, solver: str) -> None:
    times = scheduler.timesteps(10, 64)
    start = float((times[4] + times[5]) / 2 // 1)
    seen = states(scheduler, noise(), 10, start=start, solver=solver)
    assert [t for _, t in seen] == times[5:].tolist()


@SCHEDULES
def test_what_the_hook_gives_back_is_what_goes_on(scheduler: NoiseScheduler) -> None:
    entered, replaced = [], torch.full(SHAPE, 0.25, dtype=torch.float64)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        entered.append(x)
        return torch.zeros_like(x)

    end = sample(denoise, scheduler, noise(), 3, after_step=lambda x, t: replaced)
    assert torch.equal(entered[0], noise())
    assert all(x is replaced for x in entered[1:])
    assert end is replaced


@SCHEDULES
def test_a_start_outside_the_schedule_is_refused_with_what_is_accepted(scheduler: NoiseScheduler) -> None:
    first, last = (float(scheduler.timesteps(5, 64)[i]) for i in (0, -1))
    for start in (first + 1, last, last - 1, float("nan")):
        with pytest.raises(InvalidRequestError, match=f"accepted: a time above {last:g}, .* up to {first:g}"):
            sample(lambda x, t: x, scheduler, noise(), 5, start=start)
    with pytest.raises(InvalidRequestError, match=r"accepted: .*, .*"):
        sample(lambda x, t: x, scheduler, noise(), 5, start=first - 0.5, solver="euler", upstream_times=True)


def test_ddpm_has_no_time_between_two_integers_to_start_at() -> None:
    with pytest.raises(InvalidRequestError, match="integers"):
        sample(lambda x, t: x, DDPM(), noise(), 5, start=300.5)


def test_a_part_of_a_run_tells_its_own_steps() -> None:
    told = []
    sample(lambda x, t: x, FLOW, noise(), 4, start=500.0, on_step=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


@SCHEDULES
@pytest.mark.parametrize("solver", ["multistep", "euler", "ancestral"])
def test_meta_tensors_are_sampled_for_their_shape(scheduler: NoiseScheduler, solver: str) -> None:
    x = torch.empty(SHAPE, device="meta")
    end = sample(lambda x, t: x * t[0], scheduler, x, 3, solver=solver, generator=torch.Generator().manual_seed(0))
    assert end.is_meta
    assert end.shape == SHAPE
