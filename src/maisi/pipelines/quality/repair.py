"""Where a sample is drawn anew when only some of its structures fail."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from maisi.space.volume import LabelMap

MARGIN = 2
"""Latent voxels around a structure that are drawn anew with it, so that it fits to what stays."""


def region_of(ids: Collection[int], labels: LabelMap, factor: int) -> Tensor:
    """The latent voxels (u, v, w), boolean, that hold any of the structures, `MARGIN` more on each side."""
    wanted = torch.isin(torch.from_numpy(labels.array.astype("int64")), torch.tensor(sorted(ids)))
    held = max_pool3d(wanted.float()[None, None], factor)
    return max_pool3d(held, 2 * MARGIN + 1, stride=1, padding=MARGIN)[0, 0] > 0
