"""Noise schedules: how a clean latent becomes noise, what the network learns, and one step back.

Every schedule here is a Gaussian path `noisy = signal(t) * clean + spread(t) * noise` and keeps no state: times go in
as arguments. `t` counts training steps as the network sees them; draws come from an explicit generator on the CPU.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen, LatentBatch, Times


@runtime_checkable
class NoiseScheduler(Protocol):
    """What `sample` and the training loop ask of a noise schedule."""

    @property
    def num_train_steps(self) -> int:
        """Number of training steps on the scale of `t`."""
        ...

    def levels(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Factors (signal, spread) of the clean latent and of the noise at `t`, of its shape, in float64 on the CPU.

        Raises `InvalidRequestError` for a time that the schedule does not have.
        """
        ...

    def add_noise(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        """The noisy latent at `t`: signal * clean + spread * noise.

        Here and below `t` is one time, or one a sample, (b,); another number of times raises `InvalidRequestError`.
        """
        ...

    def target(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        """What the network is trained to predict from the noisy latent at `t`."""
        ...

    def predict_clean(self, x: LatentBatch, prediction: LatentBatch, t: float | Times) -> LatentBatch:
        """The clean latent that `prediction` stands for."""
        ...

    def prediction_of(self, x: LatentBatch, clean: LatentBatch, t: float | Times) -> LatentBatch:
        """The prediction that stands for `clean`: the inverse of `predict_clean`."""
        ...

    def step(
        self,
        x: LatentBatch,
        prediction: LatentBatch,
        t: float,
        t_next: float,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
    ) -> LatentBatch:
        """The latent at `t_next`, one first-order step from `t`; `eta` 0 draws no noise, 1 is ancestral.

        Raises `InvalidRequestError` where noise is to be drawn and there is no generator.
        """
        ...

    def sample_times(self, batch: int, generator: torch.Generator, num_voxels: int | None = None) -> Times:
        """Training times of a batch, float64 (b,); `num_voxels` counts latent voxels without channels."""
        ...

    def timesteps(self, num_steps: int, num_voxels: int | None = None) -> Tensor:
        """The num_steps + 1 times of a sampling run, float64, from pure noise to the time of the clean latent.

        Raises `InvalidRequestError` unless `num_steps` is 1 to `num_train_steps`.
        """
        ...

    def upstream_steps(self, num_steps: int, num_voxels: int | None = None) -> list[tuple[float, float]]:
        """The (t, t_next) of each step as upstream takes them, its rounding included."""
        ...


class DDPMConfig(Frozen):
    """Settings of a `DDPM`; the defaults are those of upstream's released models."""

    num_train_steps: int = Field(default=1000, ge=1)
    schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    beta_start: float = Field(default=0.0015, gt=0, lt=1)
    beta_end: float = Field(default=0.0195, gt=0, lt=1)
    prediction: Literal["epsilon", "velocity", "sample"] = "epsilon"

    @model_validator(mode="after")
    def _betas_rise(self) -> "DDPMConfig":
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}")
        return self


@dataclass(frozen=True)
class DDPM:
    """Variance-preserving diffusion (Ho et al., 2020) with the DDIM step (Song et al., 2021) between any two times.

    `t` is an integer 0 .. num_train_steps - 1, the least noise being at 0; -1 is the clean latent itself.
    """

    config: DDPMConfig = field(default_factory=DDPMConfig)

    @property
    def num_train_steps(self) -> int:
        return self.config.num_train_steps

    @cached_property
    def betas(self) -> Tensor:
        """Noise variance added by each training step, float64."""
        start, end, num = self.config.beta_start, self.config.beta_end, self.num_train_steps
        if self.config.schedule == "linear":
            return torch.linspace(start, end, num, dtype=torch.float64)
        return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        """Signal variance left at t = -1, 0, 1, ...; entry 0 is the clean latent."""
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - self.betas, dim=0)])

    def levels(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at `t`; `InvalidRequestError` for a fractional or outlying time."""
        index = torch.as_tensor(t).to("cpu", torch.float64) + 1
        if bool(((index != index.round()) | (index < 0) | (index > self.num_train_steps)).any()):
            raise InvalidRequestError(f"DDPM times are integers from -1 to {self.num_train_steps - 1}, not {t}")
        alpha_bar = self._alphas_cumprod[index.long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        signal, spread = _levels_like(self, t, clean)
        return signal * clean + spread * noise

    def target(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        """The noise, the velocity (Salimans and Ho, 2022) or the clean latent, as configured."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "sample":
            return clean
        signal, spread = _levels_like(self, t, clean)
        return signal * noise - spread * clean

    def predict_clean(self, x: LatentBatch, prediction: LatentBatch, t: float | Times) -> LatentBatch:
        signal, spread = _levels_like(self, t, x)
        if self.config.prediction == "epsilon":
            return (x - spread * prediction) / signal
        if self.config.prediction == "velocity":
            return signal * x - spread * prediction
        return prediction

    def prediction_of(self, x: LatentBatch, clean: LatentBatch, t: float | Times) -> LatentBatch:
        signal, spread = _levels_like(self, t, x)
        if self.config.prediction == "epsilon":
            return (x - signal * clean) / spread
        if self.config.prediction == "velocity":
            return (signal * x - clean) / spread
        return clean

    def step(
        self,
        x: LatentBatch,
        prediction: LatentBatch,
        t: float,
        t_next: float,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
    ) -> LatentBatch:
        """The DDIM step; `eta` 1 with t_next = t - 1 is the ancestral step of Ho et al. with the small variance."""
        return _gaussian_step(self, x, self.predict_clean(x, prediction, t), t, t_next, generator, eta)

    def sample_times(self, batch: int, generator: torch.Generator, num_voxels: int | None = None) -> Times:
        """Integers drawn evenly from 0 .. num_train_steps - 1."""
        return torch.randint(0, self.num_train_steps, (batch,), generator=generator).double()

    def timesteps(self, num_steps: int, num_voxels: int | None = None) -> Tensor:
        """num_steps times spread evenly from the noisiest to 0, then -1, the clean latent."""
        _check_num_steps(num_steps, self.num_train_steps)
        grid = torch.linspace(self.num_train_steps - 1, 0, num_steps).round().double()
        return torch.cat([grid, grid.new_full((1,), -1)])

    def upstream_steps(self, num_steps: int, num_voxels: int | None = None) -> list[tuple[float, float]]:
        """Upstream (MONAI 1.6.1) steps to t - 1 from every time, also where the next time is further away."""
        return [(t, t - 1) for t in self.timesteps(num_steps)[:-1].tolist()]


class RectifiedFlowConfig(Frozen):
    """Settings of a `RectifiedFlow`; the defaults are what upstream's released models were trained and run with."""

    num_train_steps: int = Field(default=1000, ge=1)
    time_distribution: Literal["uniform", "logit-normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)
    resolution_shift: bool = True
    base_voxels: int = Field(default=32**3, ge=1)


@dataclass(frozen=True)
class RectifiedFlow:
    """Rectified flow (Liu et al., 2023), `t` running from data to noise: noisy = (1 - u) clean + u noise, u = t / 1000.

    The network predicts clean - noise, so a step towards the data adds the prediction. Times are real numbers from 0,
    the clean latent, to num_train_steps, pure noise. With `resolution_shift` they are moved towards the noise for large
    latents (Esser et al., 2024, section 5.3.2), here by the ratio r = (num_voxels / base_voxels)^(1/3).
    """

    config: RectifiedFlowConfig = field(default_factory=RectifiedFlowConfig)

    @property
    def num_train_steps(self) -> int:
        return self.config.num_train_steps

    def levels(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """1 - u and u at `t`; `InvalidRequestError` for a time outside 0 .. num_train_steps."""
        u = torch.as_tensor(t).to("cpu", torch.float64) / self.num_train_steps
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise InvalidRequestError(f"flow times run from 0 to {self.num_train_steps}, not {t}")
        return 1 - u, u

    def add_noise(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        signal, spread = _levels_like(self, t, clean)
        return signal * clean + spread * noise

    def target(self, clean: LatentBatch, noise: LatentBatch, t: float | Times) -> LatentBatch:
        """The velocity from noise to data; the same at every time."""
        return clean - noise

    def predict_clean(self, x: LatentBatch, prediction: LatentBatch, t: float | Times) -> LatentBatch:
        return x + prediction * _levels_like(self, t, x)[1]

    def prediction_of(self, x: LatentBatch, clean: LatentBatch, t: float | Times) -> LatentBatch:
        return (clean - x) / _levels_like(self, t, x)[1]

    def step(
        self,
        x: LatentBatch,
        prediction: LatentBatch,
        t: float,
        t_next: float,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
    ) -> LatentBatch:
        """The Euler step; `eta` above 0 replaces that part of the remaining noise by a fresh draw."""
        if eta:
            return _gaussian_step(self, x, self.predict_clean(x, prediction, t), t, t_next, generator, eta)
        return x + prediction * ((float(t) - float(t_next)) / self.num_train_steps)

    def sample_times(self, batch: int, generator: torch.Generator, num_voxels: int | None = None) -> Times:
        """Uniform or logit-normal draws (the sigmoid of a normal one: more of the middle times), then shifted."""
        if self.config.time_distribution == "uniform":
            u = torch.rand(batch, generator=generator).double()
        else:
            normal = torch.randn(batch, generator=generator).double()
            u = torch.sigmoid(self.config.logit_mean + self.config.logit_std * normal)
        return self.num_train_steps * self._shifted(u, num_voxels)

    def timesteps(self, num_steps: int, num_voxels: int | None = None) -> Tensor:
        """Evenly spaced times, shifted; the first is exactly num_train_steps and the last exactly 0."""
        _check_num_steps(num_steps, self.num_train_steps)
        u = torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
        return self.num_train_steps * self._shifted(u, num_voxels)

    def upstream_steps(self, num_steps: int, num_voxels: int | None = None) -> list[tuple[float, float]]:
        """Upstream keeps times in float16 and cuts each next one to an integer: its steps overshoot the data by 1 %."""
        _check_num_steps(num_steps, self.num_train_steps)
        u = torch.tensor([1.0 - i / num_steps for i in range(num_steps)], dtype=torch.float64)
        if self.config.resolution_shift:
            # float32 and this order of operations, for equal bits
            ratio = (torch.tensor(self._checked_voxels(num_voxels)) / self.config.base_voxels) ** (1.0 / 3.0)
            u = u.float()
            u = ratio * u / (1 + (ratio - 1) * u)
        times = (u * self.num_train_steps).half().tolist()
        return [(t, float(int(t_next))) for t, t_next in zip(times, [*times[1:], 0.0], strict=True)]

    def _shifted(self, u: Tensor, num_voxels: int | None) -> Tensor:
        """`u` in [0, 1] moved towards 1 by the resolution ratio; both ends stay exactly where they are."""
        if not self.config.resolution_shift:
            return u
        ratio = (self._checked_voxels(num_voxels) / self.config.base_voxels) ** (1 / 3)
        return ratio * u / (ratio * u + (1 - u))

    def _checked_voxels(self, num_voxels: int | None) -> int:
        if num_voxels is None or num_voxels < 1:
            raise InvalidRequestError(
                f"a flow with resolution_shift needs the number of latent voxels, 1 or more, not {num_voxels}"
            )
        return num_voxels


def _levels_like(scheduler: NoiseScheduler, t: float | Tensor, x: LatentBatch) -> tuple[Tensor, Tensor]:
    """The levels at `t` (one, or one a sample) shaped and typed to multiply `x`.

    One for the whole batch stays on the host: moving it to a GPU would wait for all that was asked of it before.
    """
    signal, spread = scheduler.levels(t)
    if signal.numel() == 1:
        return signal.reshape(()).to(x.dtype), spread.reshape(()).to(x.dtype)
    if signal.numel() != x.shape[0]:
        raise InvalidRequestError(f"{signal.numel()} times for a batch of {x.shape[0]}; give one, or one a sample")
    shape = (-1,) + (1,) * (x.ndim - 1)
    return signal.reshape(shape).to(x.device, x.dtype), spread.reshape(shape).to(x.device, x.dtype)


def _gaussian_step(
    scheduler: NoiseScheduler,
    x: LatentBatch,
    clean: LatentBatch,
    t: float,
    t_next: float,
    generator: torch.Generator | None,
    eta: float,
) -> LatentBatch:
    """The step of equation 12 of DDIM (Song et al., 2021) in the levels of any Gaussian path.

    `eta` scales the standard deviation of the posterior q(x at t_next | x, clean), which is what is drawn afresh.
    """
    signal, spread = (float(level) for level in scheduler.levels(t))
    signal_next, spread_next = (float(level) for level in scheduler.levels(t_next))
    noise = (x - signal * clean) / spread
    if not eta:
        return signal_next * clean + spread_next * noise
    if generator is None:
        raise InvalidRequestError(f"a step with eta {eta} draws noise: give it a generator")
    drawn = eta * spread_next * math.sqrt(max(0.0, 1 - (signal * spread_next / (signal_next * spread)) ** 2))
    kept = math.sqrt(max(0.0, spread_next**2 - drawn**2))
    fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    return signal_next * clean + kept * noise + drawn * fresh


def _check_num_steps(num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        raise InvalidRequestError(f"the number of sampling steps is 1 to {most}, not {num_steps}")
