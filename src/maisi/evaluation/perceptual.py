"""How different two volumes look, plane by plane: LPIPS where there are weights for it, otherwise by own filters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maisi.bundle.public_weights import LpipsWeights, lpips_weights
from maisi.networks.trunks import OrientedEdges
from maisi.space.intensity import to_unit
from maisi.space.volume import Volume
from maisi.storage.sums import sha256

MOST_PLANES = 64  # of each orientation, evenly over it
LEAST_PIXELS = 32  # of the shorter edge of a plane: of smaller ones the last maps are empty
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the channels of images from -1 to 1, as LPIPS was made with."""

BATCH = 16


@dataclass(frozen=True)
class Perceptual:
    """A distance of images (n, 1, h, w) from 0 to 1, each (n,); `figure` names it in reports, `name` says what it is.

    Maps of both are divided by their length over the channels; squares of differences are weighted, averaged over the
    image, and summed over the maps (Zhang et al., arXiv 1801.03924).
    """

    figure: str
    name: str
    maps: Callable[[Tensor], Sequence[Tensor]]
    weights: tuple[Tensor, ...] | None = None

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        total = torch.zeros(len(images))
        for k, (a, b) in enumerate(zip(self.maps(images), self.maps(others), strict=True)):
            squares = (_unit(a) - _unit(b)).square()
            weighted = squares if self.weights is None else squares * self.weights[k]
            total = total + weighted.sum(1).mean((1, 2))
        return total


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)


def lpips(weights: LpipsWeights, name: str) -> Perceptual:
    """LPIPS 0.1 with SqueezeNet: 0 for equal images."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))

    def maps(images: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = weights.network(((2 * images - 1).expand(-1, 3, -1, -1) - shift) / scale)
        return found

    return Perceptual("lpips", name, maps, weights.heads)


def find_perceptual(paths: Sequence[Path]) -> Perceptual:
    """LPIPS of files of weights, see `lpips_weights`; without any, by oriented edges at three scales."""
    if not paths:
        return Perceptual("edges", "oriented edges at three scales: own filters, not LPIPS", OrientedEdges())
    weights = lpips_weights(paths)
    told = ", ".join(f"{path.name} sha256:{sha256(path)[:12]}" for path in paths)
    return lpips(weights, f"LPIPS 0.1 with SqueezeNet 1.1: {told}")


def perceptual_distance(volume: Volume, other: Volume, perceptual: Perceptual) -> float | None:
    """The mean over up to `MOST_PLANES` planes of each orientation, and over these.

    None where planes of no orientation have `LEAST_PIXELS` pixels a side.
    """
    units = [np.clip(to_unit(each.array, each.modality), 0, 1) for each in (volume, other)]
    found = []
    for axis in range(3):
        planes = [torch.from_numpy(np.moveaxis(unit, axis, 0)[_some(unit.shape[axis])]).float() for unit in units]
        if min(planes[0].shape[1:]) < LEAST_PIXELS:
            continue
        with torch.inference_mode():
            pairs = zip(*(each[:, None].split(BATCH) for each in planes), strict=True)
            found.append(float(torch.cat([perceptual(a, b) for a, b in pairs]).double().mean()))
    return float(np.mean(found)) if found else None


def _some(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_PLANES)).round().astype(int))
