"""The one sampling loop: from noise to a clean latent, for every noise schedule and solver."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from maisi.diffusion.scheduler import NoiseScheduler
from maisi.errors import InvalidRequestError, RunError
from maisi.shapes import LatentBatch, Times

Denoise: TypeAlias = Callable[[LatentBatch, Times], LatentBatch]
Solver: TypeAlias = Literal["multistep", "euler", "ancestral"]


@torch.no_grad()
def sample(
    denoise: Denoise,
    scheduler: NoiseScheduler,
    noise: LatentBatch,
    num_steps: int,
    *,
    solver: Solver = "multistep",
    generator: torch.Generator | None = None,
    upstream_times: bool = False,
    start: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
    after_step: Callable[[LatentBatch, float], LatentBatch] | None = None,
) -> LatentBatch:
    """The clean latent (b, c, u, v, w), times the scale factor, that `denoise` leads `noise` to in `num_steps` calls.

    `multistep` is of second order and needs 8 to 12 steps, `euler` of first order (DDIM where the schedule is DDPM's),
    `ancestral` draws new noise from `generator` at every step. `upstream_times` repeats upstream's rounded times.
    With `start`, a time in training steps, `noise` is a latent of that time and only the part of the schedule below it
    is walked. `after_step` is given the latent of each step with its time, and what it returns is what goes on;
    `on_step(done, total)` is told of each step. On meta tensors only the shapes are computed. Raises `RunError` when
    the network answers with NaN or infinity, `InvalidRequestError` for steps, times or a solver that there are not.
    """
    if solver not in get_args(Solver):
        raise InvalidRequestError(f"unknown solver {solver!r}; there are {', '.join(get_args(Solver))}")
    if upstream_times and solver == "multistep":
        raise InvalidRequestError("upstream's times go with upstream's steps: solver 'euler' or 'ancestral'")
    num_voxels = prod(noise.shape[2:])
    if upstream_times:
        steps = scheduler.upstream_steps(num_steps, num_voxels)
        steps = steps if start is None else _upstream_steps_from(start, steps)
    else:
        times = scheduler.timesteps(num_steps, num_voxels).tolist()
        steps = list(pairwise(times if start is None else _times_from(start, times, scheduler)))

    x, last = noise, None
    for done, (t, t_next) in enumerate(steps, start=1):
        prediction = denoise(x, torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device))
        if solver == "multistep":
            x, last = _multistep(scheduler, x, prediction, t, t_next, last)
        else:
            x = scheduler.step(x, prediction, t, t_next, generator, eta=float(solver == "ancestral"))
        if after_step is not None:
            x = after_step(x, t_next)
        if on_step is not None:
            on_step(done, len(steps))
    if not x.is_meta and not bool(torch.isfinite(x).all()):
        raise RunError("sampling ended in NaN or infinity: the network does not suit its input, schedule or precision")
    return x


def _times_from(start: float, times: Sequence[float], scheduler: NoiseScheduler) -> list[float]:
    """`start` and the times of the schedule below it."""
    first, last = times[0], times[-1]
    if not last < start <= first:
        raise InvalidRequestError(
            f"sampling cannot start at {start:g}; accepted: a time above {last:g}, the clean latent, up to {first:g}"
        )
    scheduler.levels(start)  # refuses a time that the schedule does not have
    return [start, *(t for t in times if t < start)]


def _upstream_steps_from(start: float, steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The steps from `start` on; between upstream's times there is no step of upstream's."""
    times = [t for t, _ in steps]
    if start not in times:
        accepted = ", ".join(f"{t:g}" for t in times)
        raise InvalidRequestError(f"sampling by upstream's times cannot start at {start:g}; accepted: {accepted}")
    return list(steps[times.index(start) :])


class _Slope(NamedTuple):
    velocity: LatentBatch
    width: float


def _multistep(
    scheduler: NoiseScheduler, x: LatentBatch, prediction: LatentBatch, t: float, t_next: float, last: _Slope | None
) -> tuple[LatentBatch, _Slope]:
    """One step of the two-step Adams-Bashforth method for uneven steps, and the slope that the next one needs.

    Scaled by 1 / (signal + spread), every Gaussian path is the straight path y = (1 - u) clean + u noise with
    u = spread / (signal + spread) and dy/du = noise - clean = (y - clean) / u. There the equation is solved: for a
    rectified flow that is the flow itself, for DDPM the first-order step is DDIM's. The first step, without a
    predecessor, is Euler's.
    """
    signal, spread = (float(level) for level in scheduler.levels(t))
    signal_next, spread_next = (float(level) for level in scheduler.levels(t_next))
    scale, scale_next = signal + spread, signal_next + spread_next
    u, u_next = spread / scale, spread_next / scale_next

    y = x / scale
    velocity = (y - scheduler.predict_clean(x, prediction, t)) / u
    width = u_next - u
    slope = velocity if last is None else velocity + (velocity - last.velocity) * (width / (2 * last.width))
    return (y + slope * width) * scale_next, _Slope(velocity, width)
