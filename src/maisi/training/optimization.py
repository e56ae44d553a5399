"""How weights learn, the same settings for every network. Imports no torch."""

import math
from typing import Literal

from pydantic import Field, model_validator

from maisi.shapes import Frozen

COSINE_FLOOR = 0.05


class Optimization(Frozen):
    """Optimiser, learning rate over the run, number format, and what is done with gradients."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine", "polynomial"] = "cosine"
    power: float = Field(default=2.0, gt=0)  # of the polynomial
    warmup: int = Field(default=100, ge=0)  # steps
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    accumulate: int = Field(default=1, ge=1)  # batches whose gradients make one step, shared by all processes
    sharded: bool = False  # over several processes: each keeps rows of weights, gradients and moments, instead of all
    slabs: int = Field(default=1, ge=1)  # of every activation, which several processes share instead of the batches
    clip_norm: float | None = Field(default=1.0, gt=0)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    checkpoint_activations: bool = False  # compute blocks again in the backward pass instead of keeping what they made
    most_skipped: int = Field(default=5, ge=0)  # steps in a row that were not finite, before training stops

    @model_validator(mode="after")
    def _can_be_split(self) -> "Optimization":
        if self.slabs > 1 and (self.sharded or self.checkpoint_activations or self.precision != "float32"):
            raise ValueError("slabs learn with precision float32, without sharded and without checkpoint_activations")
        return self

    def check_whole(self, what: str) -> None:
        """Nothing, or the refusal of slabs for what is not divided by them."""
        if self.slabs > 1:
            raise ValueError(f"{what} is not divided by slabs; accepted: slabs 1")

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of a step (from 0): linear warm-up, then constant, half a cosine, or polynomial decay."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, num_steps - self.warmup))
        if self.schedule == "cosine":
            return self.learning_rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
        return self.learning_rate * (1.0 if self.schedule == "constant" else (1 - progress) ** self.power)
