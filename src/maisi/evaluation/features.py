"""What a plane of a volume looks like, as numbers: wavelet scattering and a histogram of Hounsfield units.

Nothing is learned and nothing is downloaded: the numbers are the same for everybody. A scattering network of two
orders (Bruna and Mallat, 2013, IEEE TPAMI 35(8)) keeps how strong edges and textures of each scale and orientation are
and how they vary, the histogram how much air, lung, fat, soft tissue and bone there is.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from maisi.errors import InvalidRequestError, InvalidVolumeError
from maisi.shapes import Frozen
from maisi.space.intensity import to_unit
from maisi.space.resample import fit, resample, with_spacing
from maisi.space.volume import Volume
from maisi.storage.sums import sha256

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
    is cut or padded with air around its middle to `size` pixels; planes that show less than `least_body` of body
    (brighter than -500 HU) are left out. `centre` is the middle share of the planes that are looked at.
    """

    spacing_mm: float = 4.0
    size: int = 96
    every: int = 4
    least_body: float = 0.02
    centre: float = 1.0


PROTOCOLS = {
    "maisi": PlaneProtocol(),
    "paper": PlaneProtocol(spacing_mm=1.0, size=512, every=1, least_body=0.0, centre=0.4),
}
"""`paper` is that of the released evaluation script: 1 mm, 512 pixels, the middle 40 % of the planes."""


@dataclass(frozen=True)
class Scattering:
    """Scattering coefficients of two orders, averaged over an image, their logarithms, and a histogram."""

    scales: int = 3
    orientations: int = 4
    name: str = "scattering"

    def __call__(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(images[:, 0])
        waves = _filters(images.shape[-1], self.scales, self.orientations)
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
    ends = torch.tensor(_BINS, dtype=images.dtype)
    ranks = torch.bucketize(images[:, 0].contiguous(), ends).flatten(1)
    counts = torch.stack([(ranks == k).double().mean(1) for k in range(len(_BINS) + 1)], 1)
    return counts.sqrt()


@lru_cache(maxsize=4)
def _filters(size: int, scales: int, orientations: int) -> list[tuple[int, Tensor]]:
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
            waves.append((scale, torch.from_numpy(wave).float()))
    return waves


def plane_features(
    volumes: Sequence[Volume] | Iterator[Volume], extractor: FeatureExtractor, protocol: PlaneProtocol | None = None
) -> list[dict[str, np.ndarray]]:
    """The features of the planes of every volume by orientation, each (planes, d) float64.

    Raises `InvalidVolumeError` for a volume of which no plane of an orientation shows a body.
    """
    found = []
    for volume in volumes:
        planes = volume_planes(volume, protocol or PlaneProtocol())
        bare = [name for name, images in planes.items() if not len(images)]
        if bare:
            raise InvalidVolumeError(
                f"no plane of it shows a body ({', '.join(bare)}); accepted: volumes with tissue brighter than -500 HU"
            )
        found.append({name: _of(images, extractor) for name, images in planes.items()})
    return found


def _of(planes: Tensor, extractor: FeatureExtractor) -> np.ndarray:
    with torch.inference_mode():
        return extractor(planes).double().numpy()


def _middle(count: int, protocol: PlaneProtocol) -> slice:
    low, high = (int((1 + sign * protocol.centre) / 2 * count) for sign in (-1, 1))
    return slice(low, max(high, low + 1), protocol.every)


def volume_planes(volume: Volume, protocol: PlaneProtocol) -> dict[str, Tensor]:
    """The planes (n, 1, size, size) of each orientation of a volume, unit intensities; see `PlaneProtocol`."""
    coarse = resample(volume, with_spacing(volume.grid, [protocol.spacing_mm] * 3))
    planes = {}
    for axis, name in enumerate(PLANES):
        shape = [protocol.size] * 3
        shape[axis] = coarse.grid.shape[axis]
        placed = fit(coarse, shape)
        unit = np.moveaxis(np.clip(to_unit(placed.array, volume.modality), 0, 1), axis, 0)
        unit = unit[_middle(len(unit), protocol)]
        shown = (unit > 0.25).mean((1, 2)) >= protocol.least_body
        planes[name] = torch.from_numpy(np.ascontiguousarray(unit[shown], np.float32))[:, None]
    return planes


@dataclass(frozen=True)
class Network:
    """The features of a network, which gets images as (n, 3, h, w), the same in all channels; spatial means of maps."""

    name: str
    network: Callable[[Tensor], Tensor]
    batch: int = 16

    def __call__(self, images: Tensor) -> Tensor:
        parts = [self.network(part.expand(-1, 3, -1, -1)) for part in images.split(self.batch)]
        features = torch.cat(parts)
        return features.flatten(2).mean(-1) if features.ndim > 2 else features


def find_extractor(name: str) -> FeatureExtractor:
    """The extractor of a name: `scattering`, a TorchScript file (named with its SHA-256), or `module:callable`.

    Raises `InvalidRequestError` for anything else. A module is code of yours, and is run.
    """
    if name == "scattering":
        return Scattering()
    path = Path(name)
    if path.suffix in (".pt", ".ts"):
        if not path.is_file():
            raise InvalidRequestError(
                f"no features at {path}; accepted: a TorchScript file, module:callable, scattering"
            )
        try:
            return Network(f"{path.name} sha256:{sha256(path)[:12]}", torch.jit.load(path, map_location="cpu").eval())
        except RuntimeError as error:
            raise InvalidRequestError(f"{path} is no TorchScript file; accepted: what torch.jit.save wrote") from error
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise InvalidRequestError(
            f"unknown features {name!r}; accepted: scattering, a TorchScript file (.pt, .ts), or module:callable"
        )
    try:
        return Network(name, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise InvalidRequestError(f"features {name!r} cannot be imported: {error}") from error
