"""Networks of other people from local files: SqueezeNet 1.1, ResNet-50, and LPIPS. Nothing is downloaded.

Names are those of the public checkpoints. Loading is strict; a classifier, which takes no part, may be there or not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maisi.bundle.contents import misfit, read_weights
from maisi.bundle.upstream import read_checkpoint
from maisi.errors import InvalidRequestError
from maisi.networks.trunks import TAP_CHANNELS, ResNet50, SqueezeNet

TELLS_SQUEEZENET, TELLS_RESNET = "features.3.squeeze.weight", "layer1.0.conv1.weight"

_OF_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_COUNTERS = "num_batches_tracked"  # of training alone


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights as float32, in safetensors or as torch saves a state dict; no code is run.

    Raises `InvalidRequestError` for a file that is not there or damaged.
    """
    if not path.is_file():
        raise InvalidRequestError(f"no weights at {path}; accepted: a file of tensors (.pt, .pth, .safetensors)")
    if path.suffix == ".safetensors":
        return read_weights(path, torch.float32)
    return {name: tensor.float() for name, tensor in read_checkpoint(path).state.items()}


def squeezenet(tensors: Mapping[str, Tensor], path: Path) -> SqueezeNet:
    """SqueezeNet 1.1 with the tensors of the public checkpoint."""
    network = SqueezeNet()
    _load(network, {k: v for k, v in tensors.items() if not k.startswith("classifier.")}, f"{path} as SqueezeNet 1.1")
    return network


def resnet50(tensors: Mapping[str, Tensor], path: Path) -> ResNet50:
    """ResNet-50 with the tensors of a public checkpoint of torchvision, or of RadImageNet in either of its layouts."""
    found = {plain_name(name): tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    network = ResNet50(keras="conv1.bias" in found)
    _load(network, found, f"{path} as ResNet-50")
    return network


def plain_name(name: str) -> str:
    """The name of torchvision, of a tensor of ResNet-50 within a sequence called `backbone`."""
    match = re.match(r"backbone\.(\d)\.(.*)", name)
    return f"{_OF_SEQUENCE[match[1]]}.{match[2]}" if match and match[1] in _OF_SEQUENCE else name


@dataclass(frozen=True)
class LpipsWeights:
    """SqueezeNet and what each channel of its seven maps counts, (1, c, 1, 1), in LPIPS (arXiv 1801.03924)."""

    network: SqueezeNet
    heads: tuple[Tensor, ...]


def lpips_weights(paths: Sequence[Path]) -> LpipsWeights:
    """LPIPS from one file that holds all of it, or from two: SqueezeNet 1.1 and the heads of version 0.1.

    Raises `InvalidRequestError` where a tensor is missing, or one too many.
    """
    tensors = {_lpips_name(k): v for path in paths for k, v in read_tensors(path).items() if not _is_repeated(k)}
    shown = " and ".join(map(str, paths))
    heads = {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(TAP_CHANNELS)}
    given = {k: v for k, v in tensors.items() if k.startswith("lin")}
    wrong = misfit({k: v.shape for k, v in given.items()}, {k: torch.Size(shape) for k, shape in heads.items()})
    if wrong:
        raise InvalidRequestError(
            f"{shown} as heads of LPIPS: {wrong}; accepted: one file of LPIPS with SqueezeNet, or SqueezeNet 1.1 and "
            "the heads of version 0.1"
        )
    trunk = squeezenet({k: v for k, v in tensors.items() if not k.startswith("lin")}, Path(shown))
    return LpipsWeights(trunk.eval(), tuple(given[name] for name in heads))


def _lpips_name(name: str) -> str:
    """The name of the public SqueezeNet, of a tensor of the trunk within LPIPS."""
    return re.sub(r"^net\.slice\d\.", "features.", name)


def _is_repeated(name: str) -> bool:
    """Whether LPIPS keeps a tensor a second time, or as a constant of ours: the scale of its inputs."""
    return name.startswith(("lins.", "scaling_layer."))


def _load(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a network its tensors; all but counters of training must be there, and no other."""
    expected = {k: v for k, v in network.state_dict().items() if not k.endswith(_COUNTERS)}
    given = {k: v for k, v in tensors.items() if not k.endswith(_COUNTERS)}
    wrong = misfit({k: v.shape for k, v in given.items()}, {k: v.shape for k, v in expected.items()})
    if wrong:
        raise InvalidRequestError(f"{what}: {wrong}")
    for name, tensor in expected.items():
        tensor.copy_(given[name])
