"""Networks that give features of planes, from local files: nothing is downloaded, and no key is left out."""

import importlib
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maisi.bundle.public_weights import (
    TELLS_RESNET,
    TELLS_SQUEEZENET,
    plain_name,
    read_tensors,
    resnet50,
    squeezenet,
)
from maisi.errors import InvalidRequestError
from maisi.evaluation.features import CPU, FeatureExtractor, Scattering
from maisi.networks.trunks import SqueezeNet
from maisi.storage.sums import sha256

ACCEPTED = (
    "scattering, a file of SqueezeNet 1.1 or ResNet-50 (RadImageNet) weights, a TorchScript file, or module:callable"
)
SUFFIXES = (".pt", ".pth", ".ts", ".safetensors")
MEANS = (0.406, 0.456, 0.485)
"""Subtracted from the channels, which are blue, green and red: as the released evaluation script does for both."""


@dataclass(frozen=True)
class Network:
    """The features of a network, which gets images as (n, 3, h, w), the same in all channels less `means`.

    Of maps the spatial means are taken. Features are on the device of the images that were given.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    means: tuple[float, float, float] = (0.0, 0.0, 0.0)
    batch: int = 16
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        means = torch.tensor(self.means, device=self.device)[:, None, None]
        parts = []
        for part in images.split(self.batch):
            features = self._features(part.to(self.device).expand(-1, 3, -1, -1) - means)
            parts.append((features.flatten(2).mean(-1) if features.ndim > 2 else features).to(images.device))
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        try:
            features: object = self.network(images)
        except Exception as error:  # what is not ours may raise anything
            raise InvalidRequestError(f"features by {self.name} failed: {_said(error)}") from error
        told = f"a tensor of shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            raise InvalidRequestError(
                f"features by {self.name} are {told}; accepted: a tensor of {len(images)} rows, one for each image"
            )
        return features


def _said(error: Exception) -> str:
    """The kind of an error, and the last line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


class LastTap(nn.Module):
    """SqueezeNet's last map (n, 512, h / 16, w / 16)."""

    def __init__(self, network: SqueezeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        last: Tensor = self.network(images)[-1]
        return last


def find_extractor(name: str, device: torch.device = CPU) -> FeatureExtractor:
    """The extractor of a name: see `ACCEPTED`; of a file, and of that of a module, the report tells the SHA-256.

    Raises `InvalidRequestError` for anything else. A module is code of yours, and is run.
    """
    if name == "scattering":
        return Scattering(device=device)
    path = Path(name)
    if path.suffix in SUFFIXES:
        return _of_file(path, device)
    return _of_module(name, device)


def _of_module(name: str, device: torch.device) -> Network:
    place, colon, attribute = name.partition(":")
    if not colon or not place or not attribute:
        raise InvalidRequestError(f"unknown features {name!r}; accepted: {ACCEPTED}")
    accepted = "module:callable, such as own:embed for a file own.py in a folder of PYTHONPATH"
    try:
        module = importlib.import_module(place)
        network = getattr(module, attribute)
    except Exception as error:  # what is not ours may raise anything
        raise InvalidRequestError(
            f"features {name!r} cannot be imported: {_said(error)}; accepted: {accepted}"
        ) from error
    if not callable(network):
        raise InvalidRequestError(f"features {name!r} are of type {type(network).__name__}; accepted: {accepted}")
    file = getattr(module, "__file__", None)  # one that is built in has none
    return Network(f"{name} sha256:{sha256(Path(file))[:12]}" if file else name, network, device=device)


def _of_file(path: Path, device: torch.device) -> Network:
    if not path.is_file():
        raise InvalidRequestError(f"no features at {path}; accepted: {ACCEPTED}")
    told = f"{path.name} sha256:{sha256(path)[:12]}"
    script = None if path.suffix == ".safetensors" else _script(path, device)
    if script is not None:
        return Network(told, script, device=device)
    tensors = read_tensors(path)
    if TELLS_SQUEEZENET in tensors:
        network: nn.Module = LastTap(squeezenet(tensors, path))
        return Network(f"SqueezeNet 1.1, {told}", network.eval().to(device), MEANS, device=device)
    if TELLS_RESNET not in map(plain_name, tensors):
        raise InvalidRequestError(f"{path} holds neither a TorchScript network nor known weights; accepted: {ACCEPTED}")
    return Network(f"ResNet-50, {told}", resnet50(tensors, path).eval().to(device), MEANS, device=device)


def _script(path: Path, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """The TorchScript network of a file; None for a file that holds none, which is known by its code."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any("/code/" in name for name in archive.namelist()):
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which is what people have
        return torch.jit.load(path, map_location=device).eval()
