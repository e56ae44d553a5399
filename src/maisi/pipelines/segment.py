"""The structures of a CT, told by a bundle's segmenter: a `Volume` to a `LabelMap`, window by window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
import torch
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
STEP = 0.75  # of a window, from one to the next
SHARPNESS = 0.25  # standard deviation of a window's weights, as a part of its length
SLAB = 16  # planes, and
POINTS = 1 << 16  # voxels that are interpolated at a time


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
        return LabelMap(most_likely(found, grid, volume.grid), volume.grid)

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

    Means over windows that overlap by a quarter, weighted by a gaussian; beyond the volume is air.
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
    return total.div_(mass)[(slice(None), *inside)]


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


def most_likely(found: Tensor, source: Grid, target: Grid) -> np.ndarray:
    """The likeliest channel at each voxel of another grid, uint8, of probabilities that are interpolated linearly.

    Where all voxels around it have the same likeliest channel it is the one, which spares most of the work.
    """
    x, y, z = (_neighbours(source, target, axis) for axis in range(3))
    likeliest, rows = found.argmax(0).to(torch.uint8).numpy(), found.flatten(1).T.contiguous()
    result = np.empty(target.shape, np.uint8)
    for start in range(0, target.shape[0], SLAB):
        low, high, share = (each[start : start + SLAB] for each in x)
        slab = ((low, high, share), y, z)
        least = greatest = likeliest
        for axis, (before, behind, _) in enumerate(slab):
            least = np.minimum(least.take(before, axis), least.take(behind, axis))
            greatest = np.maximum(greatest.take(before, axis), greatest.take(behind, axis))
        for points in _chunks(np.nonzero(least != greatest)):
            least[points] = _interpolated(rows, likeliest.shape, points, slab).argmax(1).to(torch.uint8).numpy()
        result[start : start + SLAB] = least
    return result


Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


def _neighbours(source: Grid, target: Grid, axis: int) -> Neighbours:
    """Along an axis, for each voxel of the target: the source's before and behind it, and the share of the latter."""
    world = target.origin[axis] + np.arange(target.shape[axis]) * target.spacing[axis]
    index = np.clip((world - source.origin[axis]) / source.spacing[axis], 0, source.shape[axis] - 1)
    low = np.floor(index).astype(np.int64)
    return low, np.minimum(low + 1, source.shape[axis] - 1), (index - low).astype(np.float32)


def _chunks(points: tuple[np.ndarray, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, len(points[0]), POINTS):
        yield tuple(each[start : start + POINTS] for each in points)


def _interpolated(
    rows: Tensor, shape: Sequence[int], points: tuple[np.ndarray, ...], around: Sequence[Neighbours]
) -> Tensor:
    """The probabilities (points, channels) at points of the target, of `rows` (voxels of the source, channels)."""
    total = torch.zeros((len(points[0]), rows.shape[1]))
    for corner in product((0, 1), repeat=3):
        places, weight = [], np.ones(len(points[0]), np.float32)
        for side, at, (low, high, share) in zip(corner, points, around, strict=True):
            places.append((high if side else low)[at])
            weight = weight * (share[at] if side else 1 - share[at])
        flat = np.ravel_multi_index(places, tuple(shape))
        total += rows[torch.from_numpy(flat)] * torch.from_numpy(weight)[:, None]
    return total
