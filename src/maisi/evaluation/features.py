"""What a plane of a volume looks like, as numbers: wavelet scattering and a histogram of Hounsfield units.

Nothing is learned and nothing is downloaded: the numbers are the same for everybody. A scattering network of two
orders (Bruna and Mallat, 2013, IEEE TPAMI 35(8)) keeps how strong edges and textures of each scale and orientation are
and how they vary, the histogram how much air, lung, fat, soft tissue and bone there is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from maisi.errors import InvalidVolumeError
from maisi.shapes import Frozen
from maisi.space.intensity import to_unit
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import Volume

CPU = torch.device("cpu")
PLANES = ("sagittal", "coronal", "axial")  # of constant x, y and z
_BINS = (0.05, 0.2, 0.35, 0.44, 0.47, 0.5, 0.52, 0.545, 0.58, 0.65, 0.8)  # ends of unit intensities


class FeatureExtractor(Protocol):
    """Images (n, 1, h, w) of unit intensities to features (n, d)."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def __call__(self, images: Tensor) -> Tensor:
        """The features."""


class PlaneProtocol(Frozen):
    """Which planes of a volume are looked at, and how: 2.5-D, three orientations.

    A volume is resampled to `spacing_mm`, windowed to -1000 to 1000 HU, and every `every`-th plane of each orientation
    is cut or padded with air around its middle to `size` pixels, as is the volume across the planes where it is a
    `cube`; planes that show less than `least_body` of body (brighter than -500 HU) are left out. `centre` is the middle
    share of the planes that are looked at. With `stretched`, intensities go from 0 to 1 over the planes of one
    orientation of a volume. With `standardised`, features are divided by their deviation over the real planes.
    """

    spacing_mm: float = 4.0
    size: int = 96
    every: int = 4
    least_body: float = 0.02
    centre: float = 1.0
    cube: bool = False
    stretched: bool = False
    standardised: bool = True


PROTOCOLS = {
    "maisi": PlaneProtocol(),
    "paper": PlaneProtocol(
        spacing_mm=1.0,
        size=512,
        every=1,
        least_body=0.0,
        centre=0.4,
        cube=True,
        stretched=True,
        standardised=False,
    ),
}
"""`paper` is that of the released evaluation script: 1 mm, 512^3, the middle 40 % of the planes of each axis."""


@dataclass(frozen=True)
class Scattering:
    """Scattering coefficients of two orders, averaged over an image, their logarithms, and a histogram."""

    scales: int = 3
    orientations: int = 4
    name: str = "scattering"
    batch: int = 64
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        parts = [self._features(part.to(self.device)).to(images.device) for part in images.split(self.batch)]
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(images[:, 0])
        waves = _filters(images.shape[-1], self.scales, self.orientations, images.device)
        found = [_mean(images[:, 0])]
        for scale, first in waves:
            envelope = torch.fft.ifft2(spectrum * first).abs()
            found.append(_mean(envelope))
            inner = torch.fft.fft2(envelope)
            found += [_mean(torch.fft.ifft2(inner * second).abs()) for coarser, second in waves if coarser > scale]
        return torch.cat([torch.log(torch.stack(found, 1) + 1e-4), _histogram(images)], 1)


def _mean(images: Tensor) -> Tensor:
    return images.mean((-2, -1))


def _histogram(images: Tensor) -> Tensor:
    """Shares (n, b) of the pixels of each range, as square roots."""
    ends = torch.tensor(_BINS, dtype=images.dtype, device=images.device)
    ranks = torch.bucketize(images[:, 0].contiguous(), ends).flatten(1)
    counts = torch.stack([(ranks == k).double().mean(1) for k in range(len(_BINS) + 1)], 1)
    return counts.sqrt()


@lru_cache(maxsize=4)
def _filters(size: int, scales: int, orientations: int, device: torch.device) -> list[tuple[int, Tensor]]:
    """Morlet wavelets with their scale, in the frequency domain (h, w); frequencies in radians."""
    frequency = 2 * np.pi * np.fft.fftfreq(size)
    u, v = np.meshgrid(frequency, frequency, indexing="ij")
    waves = []
    for scale in range(scales):
        sigma, centre = 0.8 * 2**scale, 0.75 * np.pi / 2**scale
        for k in range(orientations):
            angle = np.pi * k / orientations
            along, across = u * np.cos(angle) + v * np.sin(angle), -u * np.sin(angle) + v * np.cos(angle)
            gauss = np.exp(-0.5 * sigma**2 * ((along - centre) ** 2 + across**2))
            still = np.exp(-0.5 * sigma**2 * (along**2 + across**2))
            wave = gauss - still * (gauss[0, 0] / still[0, 0])  # no answer to a constant image
            waves.append((scale, torch.from_numpy(wave).float().to(device)))
    return waves


def plane_features(
    volumes: Iterable[Volume], extractor: FeatureExtractor, protocol: PlaneProtocol | None = None
) -> list[dict[str, np.ndarray]]:
    """The features of the planes of every volume by orientation, each (planes, d) float64.

    Raises `InvalidVolumeError` for a volume of which no plane of an orientation shows a body, and for features that are
    no numbers.
    """
    return [_of(volume, extractor, protocol or PlaneProtocol()) for volume in volumes]


def _of(volume: Volume, extractor: FeatureExtractor, protocol: PlaneProtocol) -> dict[str, np.ndarray]:
    found, bare = {}, []
    for name, images in volume_planes(volume, protocol):
        if len(images):
            with torch.inference_mode():
                found[name] = extractor(images).double().cpu().numpy()
        else:
            bare.append(name)
    if bare:
        raise InvalidVolumeError(
            f"no plane of it shows a body ({', '.join(bare)}); accepted: volumes with tissue brighter than -500 HU"
        )
    strange = [name for name, features in found.items() if not np.isfinite(features).all()]
    if strange:
        raise InvalidVolumeError(
            f"{extractor.name} gives features that are NaN or infinite of its {', '.join(strange)} planes; "
            "accepted: finite numbers"
        )
    return found


def _middle(count: int, protocol: PlaneProtocol) -> slice:
    low, high = (int((1 + sign * protocol.centre) / 2 * count) for sign in (-1, 1))
    return slice(low, max(high, low + 1), protocol.every)


def volume_planes(volume: Volume, protocol: PlaneProtocol) -> Iterator[tuple[str, Tensor]]:
    """The planes (n, 1, size, size) of one orientation after the other, from 0 to 1; see `PlaneProtocol`."""
    coarse = resample(volume, with_spacing(volume.grid, [protocol.spacing_mm] * 3))
    for axis, name in enumerate(PLANES):
        shape = [protocol.size] * 3
        shape[axis] = protocol.size if protocol.cube else coarse.grid.shape[axis]
        planes = np.moveaxis(fit(coarse, shape).array, axis, 0)
        unit = np.clip(to_unit(planes[_middle(len(planes), protocol)], volume.modality), 0, 1)
        unit = unit[(unit > 0.25).mean((1, 2)) >= protocol.least_body]
        if protocol.stretched:
            unit = _stretched(unit)
        yield name, torch.from_numpy(np.ascontiguousarray(unit, np.float32))[:, None]


def _stretched(unit: np.ndarray) -> np.ndarray:
    """Intensities over their range, from 0 to 1; of constant planes zeros."""
    low, span = float(unit.min()), float(np.ptp(unit))
    return (unit - low) / (span or 1.0)
