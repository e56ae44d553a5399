"""The structures of a CT, told by a bundle's segmenter: a `Volume` to a `LabelMap`, window by window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.anatomy.segmented import class_map
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle
from maisi.errors import InvalidBundleError, InvalidVolumeError
from maisi.networks.segmenter import SegmentationUNet, SegmenterConfig
from maisi.shapes import Size3
from maisi.space.grid import Grid
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import OUTSIDE, LabelMap, Volume

NAME = "segmenter"
STEP = 0.5  # of a window, from one to the next
SHARPNESS = 0.25  # standard deviation of a window's weights, as a part of its length
SLAB_VALUES = 1 << 24  # scores that are interpolated at a time


@dataclass(frozen=True)
class NetworkSegmenter:
    """A segmenter by a network: called with a CT it gives the label map, on the grid of the CT.

    What lies in a class of several structures is written as the tissue they are part of: ribs as skeleton. `classes`
    keeps them apart.
    """

    network: SegmentationUNet

    @property
    def config(self) -> SegmenterConfig:
        return self.network.config

    def __call__(self, volume: Volume) -> LabelMap:
        """Ids of the vocabulary, 0 outside of the body."""
        return self.written(self.classes(volume))

    def classes(self, volume: Volume) -> LabelMap:
        """The number of each voxel's class, from 1 in the order of `config.names`, 0 outside of the body.

        The memory that this takes grows with the volume at the network's spacing, and by a byte a voxel of the volume.
        """
        if volume.modality != "ct":
            raise InvalidVolumeError(f"a segmenter takes a CT, got {volume.modality}")
        grid = with_spacing(volume.grid, (self.config.spacing_mm,) * 3)
        found = probabilities(self.network, resample(volume, grid).array)
        return LabelMap(_most_likely(found, grid, volume.grid), volume.grid)

    def written(self, classes: LabelMap) -> LabelMap:
        """A map of classes in ids of the vocabulary."""
        ids = np.array([0, *(each.written_as for each in self.config.classes)], np.uint8)
        return LabelMap(ids[classes.array], classes.grid)

    def classes_of(self, labels: LabelMap) -> LabelMap:
        """A label map in the same classes, for comparison."""
        return LabelMap(class_map(labels.array, self.config.classes, load_vocabulary()), labels.grid)


def segmenter_of(bundle: Bundle) -> NetworkSegmenter:
    """The segmenter in a bundle; raises `InvalidBundleError` where it has none."""
    if NAME not in bundle.names:
        there = ", ".join(bundle.names)
        raise InvalidBundleError(
            f"bundle {bundle.name!r} has no {NAME}; it holds {there}; accepted: a bundle of `maisi train {NAME}`"
        )
    return NetworkSegmenter(cast(SegmentationUNet, bundle.network(NAME)))


def probabilities(network: SegmentationUNet, hu: np.ndarray) -> Tensor:
    """Probabilities (1 + classes, x, y, z) of a volume `[x y z]` at the network's spacing, float32 on the CPU.

    Means over windows that overlap by half, weighted by a gaussian; beyond the volume is air.
    """
    window = network.config.window
    sizes = [max(n, w) for n, w in zip(hu.shape, window, strict=True)]
    before = [(size - n) // 2 for size, n in zip(sizes, hu.shape, strict=True)]
    widths = [(low, size - n - low) for low, size, n in zip(before, sizes, hu.shape, strict=True)]
    padded = torch.from_numpy(np.pad(hu.astype(np.float32), widths, constant_values=OUTSIDE["ct"]))
    like, weights = next(network.parameters()), _weights(window)
    total = torch.zeros((1 + len(network.config.classes), *sizes))
    mass = torch.zeros(tuple(sizes))
    with torch.inference_mode():
        for part in _windows(sizes, window):
            scores = network(padded[part][None, None].to(like.device, like.dtype))[0]
            total[(slice(None), *part)] += scores.float().softmax(0).cpu() * weights
            mass[part] += weights
    inside = tuple(slice(low, low + n) for low, n in zip(before, hu.shape, strict=True))
    return (total / mass)[(slice(None), *inside)]


def _windows(sizes: Sequence[int], window: Size3) -> Iterator[tuple[slice, slice, slice]]:
    """Windows that cover a volume, evenly spread."""
    starts = []
    for n, w in zip(sizes, window, strict=True):
        count = 1 + int(np.ceil((n - w) / (STEP * w)))
        starts.append(np.linspace(0, n - w, count).round().astype(int).tolist())
    for at in product(*starts):
        x, y, z = (slice(start, start + w) for start, w in zip(at, window, strict=True))
        yield x, y, z


def _weights(window: Size3) -> Tensor:
    """How much a voxel of a window counts: most in the middle."""
    axes = [torch.exp(-0.5 * (torch.linspace(-0.5, 0.5, w) / SHARPNESS) ** 2) for w in window]
    return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]


def _most_likely(found: Tensor, source: Grid, target: Grid) -> np.ndarray:
    """The likeliest channel at each voxel of another grid, uint8: probabilities are interpolated, slab by slab."""
    if source == target:
        return found.argmax(0).to(torch.uint8).numpy()
    present = found.flatten(1).amax(1).ge(0.999 / len(found)).nonzero().flatten()  # no other is the likeliest anywhere
    axes = [_fractions(source, target, axis) for axis in range(3)]
    result = np.zeros(target.shape, np.uint8)
    depth = max(1, SLAB_VALUES // (len(present) * target.shape[1] * target.shape[2]))
    channels = found[present][None]
    for start in range(0, target.shape[0], depth):
        x, y, z = axes[0][start : start + depth], axes[1], axes[2]
        places = torch.stack(torch.meshgrid(x, y, z, indexing="ij")[::-1], dim=-1)[None]
        scores = F.grid_sample(channels, places, mode="bilinear", padding_mode="border", align_corners=True)[0]
        result[start : start + depth] = present[scores.argmax(0)].to(torch.uint8).numpy()
    return result


def _fractions(source: Grid, target: Grid, axis: int) -> Tensor:
    """Where the target's voxels lie between the first (-1) and the last (1) voxel of the source."""
    world = target.origin[axis] + np.arange(target.shape[axis]) * target.spacing[axis]
    index = (world - source.origin[axis]) / source.spacing[axis]
    return torch.from_numpy((2 * index / max(1, source.shape[axis] - 1) - 1).astype(np.float32))
