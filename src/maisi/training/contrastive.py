"""The region-contrastive loss of MAISI's second version: a lesion shows where its label is, and nowhere else.

The network answers twice, to a label map with lesions and to the same one without them. Where the maps differ the
answers are to differ; away from there the answer without lesions is to be right as well.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from maisi.anatomy.lesions import LESIONS, without_structures
from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen, LatentBatch


class ContrastiveConfig(Frozen):
    """`structures` and groups are removed, the difference pays up to `delta`, `margin` latent voxels are left out."""

    weight: float = Field(default=0.01, gt=0)
    delta: float = Field(default=2.0, gt=0)
    margin: int = Field(default=3, ge=0)
    structures: tuple[str, ...] = LESIONS

    @field_validator("structures")
    @classmethod
    def _some(cls, structures: tuple[str, ...]) -> tuple[str, ...]:
        if not structures:
            raise ValueError("structures is empty; name what is to be removed, such as tumours")
        return structures


class Contrast(NamedTuple):
    """The two terms, each a number; both 0 where no label map differs."""

    foreground: Tensor
    background: Tensor


def labels_without(labels: Tensor, structures: tuple[str, ...], vocabulary: Vocabulary) -> Tensor:
    """The ids (b, x, y, z) with structures and groups of these names removed, see `without_structures`."""
    ids = {id for name in structures for id in vocabulary.members(name)}
    return torch.stack([torch.from_numpy(without_structures(each.numpy(), ids, vocabulary)) for each in labels])


def differing(labels: Tensor, others: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Latent voxels (b, u, v, w) in which two label maps (b, x, y, z) differ somewhere; booleans."""
    return F.adaptive_max_pool3d((labels != others).float(), size) > 0


def region_contrast(
    with_: LatentBatch, without: LatentBatch, target: LatentBatch, region: Tensor, config: ContrastiveConfig
) -> Contrast:
    """The contrast of predictions with and without lesions, for the target and the region (b, u, v, w) of the lesions.

    foreground = max(-mean |with - without|, -delta) over the region, background = mean |without - target| farther than
    `margin` from it. Both are means over the voxels of one sample's region, so that large and small lesions weigh
    alike, then over the samples that have one.
    """
    inside = region[:, None].to(with_.dtype)
    width = 2 * config.margin + 1
    outside = 1 - F.max_pool3d(inside, width, stride=1, padding=config.margin)
    shown = -_mean_over(inside, (with_ - without).abs()).clamp(max=config.delta)
    wrong = _mean_over(outside, (without - target).abs())
    has = region.flatten(1).any(1).to(with_.dtype)
    count = has.sum().clamp(min=1)
    return Contrast((shown * has).sum() / count, (wrong * has).sum() / count)


def _mean_over(mask: Tensor, values: Tensor) -> Tensor:
    """The mean of values (b, c, u, v, w) over a mask (b, 1, u, v, w), for each sample; 0 where the mask is empty."""
    size = mask.sum((1, 2, 3, 4)) * values.shape[1]
    return (mask * values).sum((1, 2, 3, 4)) / size.clamp(min=1)
