"""Named tensor shapes and the frozen base of every configuration.

Letters: `x y z` voxels of a volume, `u v w` voxels of a latent, `b` batch, `c` channels.
The names tell a reader the shape; nothing checks them at run time.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    ImageBatch: TypeAlias = Tensor  # (b, 1, x, y, z), float, [0, 1]
    LatentBatch: TypeAlias = Tensor  # (b, c, u, v, w), float
    BitsBatch: TypeAlias = Tensor  # (b, 8, x, y, z), float, 0 or 1
    Times: TypeAlias = Tensor  # (b,), float, training steps
else:
    ImageBatch = LatentBatch = BitsBatch = Times = Any

Size3: TypeAlias = tuple[int, int, int]
Spacing3: TypeAlias = tuple[float, float, float]
Modality: TypeAlias = Literal["ct", "mr"]


class Frozen(BaseModel):
    """Base of every configuration: immutable, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
