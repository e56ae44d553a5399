"""Named tensor shapes and the frozen base of every configuration.

Letters: `x y z` voxels of a volume, `u v w` voxels of a latent, `b` batch, `c` channels, `m d` tokens and their width;
`_` is any number. A letter stands for one number throughout a call. The tests check the shapes of every call of
networks, diffusion and training; elsewhere the names only tell a reader.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    ImageBatch: TypeAlias = Tensor
    VoxelBatch: TypeAlias = Tensor
    BitsBatch: TypeAlias = Tensor
    LatentBatch: TypeAlias = Tensor
    PredictionBatch: TypeAlias = Tensor
    Times: TypeAlias = Tensor
    RegionBatch: TypeAlias = Tensor
    SpacingBatch: TypeAlias = Tensor
    ModalityBatch: TypeAlias = Tensor
    ContextBatch: TypeAlias = Tensor
elif "jaxtyping" in sys.modules:  # loaded before by the tests, see tests/conftest.py
    from jaxtyping import Float, Int, Real

    ImageBatch = Float[Any, "b 1 x y z"]  # intensities, [0, 1]
    VoxelBatch = Float[Any, "b _ x y z"]  # an image, the bits of labels, or scores of classes
    BitsBatch = Float[Any, "b 8 x y z"]  # 0 or 1
    LatentBatch = Float[Any, "b c u v w"]
    PredictionBatch = Float[Any, "b _ u v w"]  # a U-Net may give other channels than it takes
    Times = Real[Any, " b"]  # training steps
    RegionBatch = Float[Any, "b 4"]  # one-hot x 100
    SpacingBatch = Float[Any, "b 3"]  # mm x 100
    ModalityBatch = Int[Any, " b"]
    ContextBatch = Float[Any, "b m d"]
else:
    ImageBatch = VoxelBatch = BitsBatch = LatentBatch = PredictionBatch = Any
    Times = RegionBatch = SpacingBatch = ModalityBatch = ContextBatch = Any

Size3: TypeAlias = tuple[int, int, int]
Spacing3: TypeAlias = tuple[float, float, float]
Modality: TypeAlias = Literal["ct", "mr"]


def in_words(numbers: Iterable[float], digits: int = 6) -> str:
    """Voxels or lengths on three axes, as 512 x 512 x 768, to so many significant digits."""
    return " x ".join(f"{number:.{digits}g}" for number in numbers)


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


class Frozen(BaseModel):
    """Base of every configuration: immutable, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
