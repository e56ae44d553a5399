"""Who is nearest to whom among training volumes or label maps, and what of it is a copy."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen, Spacing3

COPY_SHARE = 0.5
"""What is nearer than this share of the least distance of anything held out is called a copy."""

SAME = 0.02
"""What is no farther apart is the same, but for rounding."""


class Neighbour(Frozen):
    """Something and the training volumes (or label maps) that are nearest to it, directly and by features."""

    name: str
    nearest: str
    distance: float = Field(description="0 for a copy, about 1 for what has nothing in common.")
    nearest_by_features: str
    features: float
    mirrored: bool = Field(description="Whether it is nearest once it is mirrored, left to right.")
    shift_mm: Spacing3 | None = Field(
        default=None, description="Of the nearest's field of view to where both show the same, middles upon each other."
    )
    is_close: bool = Field(default=False, description="Nearer than everything that was held out.")
    is_copy: bool = Field(default=False, description="Nearer than half of that.")


class Neighbours(Frozen):
    """Neighbours of what was generated, nearest first, and of what was held out."""

    num_training: int
    generated: tuple[Neighbour, ...]
    held_out: tuple[Neighbour, ...]
    least: float = Field(description="Least distance of anything held out, but for what may itself be of training.")
    expected_close: float = Field(description="How many generated ones would be close if they were new patients.")
    notes: tuple[str, ...] = ()

    @property
    def copies(self) -> tuple[Neighbour, ...]:
        """The generated ones that are called copies."""
        return tuple(each for each in self.generated if each.is_copy)

    @property
    def close(self) -> int:
        """How many generated ones are close."""
        return sum(each.is_close for each in self.generated)


def usual_distance(held_out: Sequence[Neighbour]) -> float:
    """The median of what is not the same; raises `InvalidRequestError` where all of them are the same as training."""
    others = [each.distance for each in held_out if each.distance > SAME]
    if not others:
        raise InvalidRequestError(
            f"all {len(held_out)} held out are as near to training as copies, such as {held_out[0].name} to "
            f"{held_out[0].nearest}; accepted: real ones that were not trained on, which tell what near is"
        )
    return float(np.median(others))


def judged(generated: Sequence[Neighbour], held_out: Sequence[Neighbour], num_training: int) -> Neighbours:
    """The neighbours with what is close and what is a copy.

    Something held out that is the same as something of training, or much nearer to it than is usual there (than
    `COPY_SHARE` of the median of the others), may show a patient of training: it tells nothing of what near is, and is
    told.
    """
    usual = usual_distance(held_out)
    strange = [each for each in held_out if each.distance <= SAME or each.distance < COPY_SHARE * usual]
    least = min(each.distance for each in held_out if each not in strange)
    found = [
        each.model_copy(update={"is_close": each.distance < least, "is_copy": each.distance < COPY_SHARE * least})
        for each in generated
    ]
    notes = [f"held out {each.name} is as near to {each.nearest} as a copy; it is not counted" for each in strange]
    if len(held_out) < 10:
        notes.append(f"{len(held_out)} held out are few to tell what near is")
    return Neighbours(
        num_training=num_training,
        generated=tuple(sorted(found, key=lambda each: each.distance)),
        held_out=tuple(sorted(held_out, key=lambda each: each.distance)),
        least=least,
        expected_close=len(generated) / (len(held_out) + 1),
        notes=tuple(notes),
    )
