"""The weight of the KL term, steered so that latents keep a spread near 1 (MAISI, arXiv 2409.11169, supplement B)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, model_validator

from maisi.shapes import Frozen

SMOOTHING = 0.9  # of the spread, from step to step


class Steering(Frozen):
    """The band of the latents' standard deviation, and how fast the weight follows."""

    low: float = Field(default=0.9, gt=0)
    high: float = Field(default=1.1, gt=0)
    gain: float = Field(default=0.1, gt=0, le=1)  # of the logarithm of what is beyond the band, a step
    least_weight: float = Field(default=1e-10, gt=0)
    greatest_weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _is_band(self) -> "Steering":
        if self.low >= self.high or self.least_weight >= self.greatest_weight:
            raise ValueError("low must be below high, and least_weight below greatest_weight")
        return self


@dataclass
class SteeredWeight:
    """A weight that goes up while latents spread more than the band, and down while they spread less.

    A strong KL term pulls latents together, a weak one lets reconstruction drive them apart. Within the band the weight
    stays.
    """

    weight: float
    config: Steering | None = None  # None: the weight never moves
    spread: float | None = None  # the smoothed standard deviation

    def follow(self, spread: float) -> None:
        """Take the standard deviation of a step's latents into account."""
        if self.config is None or not math.isfinite(spread):
            return
        before = spread if self.spread is None else self.spread
        self.spread = SMOOTHING * before + (1 - SMOOTHING) * spread
        nearest = min(max(self.spread, self.config.low), self.config.high)
        moved = self.weight * math.exp(self.config.gain * math.log(self.spread / nearest))
        self.weight = min(max(moved, self.config.least_weight), self.config.greatest_weight)

    def facts(self) -> dict[str, float]:
        """The weight and the smoothed spread (-1 before the first step)."""
        return {"weight": self.weight, "spread": -1.0 if self.spread is None else self.spread}

    def resume(self, facts: Mapping[str, float]) -> None:
        """Take up where an earlier part of the run was."""
        self.weight, self.spread = facts["weight"], None if facts["spread"] < 0 else facts["spread"]
