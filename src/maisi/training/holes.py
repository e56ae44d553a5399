"""Holes in latents, which a ControlNet learns to fill from what is around them (MAISI, arXiv 2409.11169)."""

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from maisi.anatomy.lesions import LESIONS
from maisi.anatomy.vocabulary import Vocabulary
from maisi.shapes import Frozen, Size3


class Inpainting(Frozen):
    """Where the holes are: over `structures` with a rim, in a case without any a box.

    A share `whole` of the latents is one hole, so that the network still makes images of labels alone.
    """

    structures: tuple[str, ...] = LESIONS
    rim: int = Field(default=1, ge=0)  # latent voxels
    box: tuple[float, float] = (0.15, 0.5)  # least and largest edge, as a share of the latent's
    whole: float = Field(default=0.2, ge=0, le=1)


def hole_of(
    labels: Tensor, size: Size3, config: Inpainting, vocabulary: Vocabulary, rng: np.random.Generator
) -> Tensor:
    """The hole (u, v, w), bool, of a latent whose volume has the labels (x, y, z)."""
    if rng.random() < config.whole:
        return torch.ones(size, dtype=torch.bool)
    ids = [id for name in config.structures for id in vocabulary.members(name)]
    shown = torch.isin(labels, torch.tensor(ids, dtype=labels.dtype))
    if not bool(shown.any()):
        return _box(size, config.box, rng)
    hole = F.adaptive_max_pool3d(shown[None].float(), size)
    return F.max_pool3d(hole, 2 * config.rim + 1, stride=1, padding=config.rim)[0] > 0


def _box(size: Size3, share: tuple[float, float], rng: np.random.Generator) -> Tensor:
    hole = torch.zeros(size, dtype=torch.bool)
    edges = [max(1, round(n * rng.uniform(*share))) for n in size]
    starts = [int(rng.integers(0, n - edge + 1)) for n, edge in zip(size, edges, strict=True)]
    hole[tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))] = True
    return hole
