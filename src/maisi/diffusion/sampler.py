"""The one sampling loop: from noise to a clean latent, for every noise schedule and solver."""

from collections.abc import Callable
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
    on_step: Callable[[int, int], None] | None = None,
) -> LatentBatch:
    """The clean latent (times the scale factor) that `denoise` leads `noise` to, in `num_steps` network calls.

    `multistep` is of second order and needs 8 to 12 steps, `euler` of first order (DDIM where the schedule is DDPM's),
    `ancestral` draws new noise from `generator` at every step. `upstream_times` repeats upstream's rounded times.
    `on_step(done, num_steps)` is told of each step. Raises RunError when the network answers with NaN or infinity.
    """
    if solver not in get_args(Solver):
        raise InvalidRequestError(f"unknown solver {solver!r}; there are {', '.join(get_args(Solver))}")
    if upstream_times and solver == "multistep":
        raise InvalidRequestError("upstream's times go with upstream's steps: solver 'euler' or 'ancestral'")
    num_voxels = prod(noise.shape[2:])
    if upstream_times:
        steps = scheduler.upstream_steps(num_steps, num_voxels)
    else:
        steps = list(pairwise(scheduler.timesteps(num_steps, num_voxels).tolist()))

    x, last = noise, None
    for done, (t, t_next) in enumerate(steps, start=1):
        prediction = denoise(x, torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device))
        if solver == "multistep":
            x, last = _multistep(scheduler, x, prediction, t, t_next, last)
        else:
            x = scheduler.step(x, prediction, t, t_next, generator, eta=float(solver == "ancestral"))
        if on_step is not None:
            on_step(done, num_steps)
    if not bool(torch.isfinite(x).all()):
        raise RunError("sampling ended in NaN or infinity: the network does not suit its input, schedule or precision")
    return x


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
