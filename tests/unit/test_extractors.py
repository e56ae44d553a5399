"""Features by networks of local files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maisi.errors import InvalidRequestError
from maisi.evaluation.extractors import MEANS, find_extractor
from maisi.networks.trunks import TAP_CHANNELS, ResNet50, SqueezeNet
from maisi.storage.sums import sha256


def images() -> torch.Tensor:
    return torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def public_squeezenet() -> dict[str, torch.Tensor]:
    """The tensors of the public checkpoint: those of the trunk, and its classifier."""
    torch.manual_seed(0)
    return {
        **{k: v.clone() for k, v in SqueezeNet().state_dict().items()},
        "classifier.1.weight": torch.zeros(1000, 512, 1, 1),
        "classifier.1.bias": torch.zeros(1000),
    }


def test_squeezenet_is_the_public_one() -> None:
    network = SqueezeNet()
    assert sum(p.numel() for p in network.parameters()) == 722_496
    taps = network(torch.rand(2, 3, 64, 64))
    assert tuple(tap.shape[1] for tap in taps) == TAP_CHANNELS
    assert [tap.shape[2] for tap in taps] == [31, 15, 7, 3, 3, 3, 3]


@pytest.mark.parametrize(("keras", "numbers"), [(False, 23_508_032), (True, 23_508_032 + 26_560)])
def test_resnet_has_the_size_and_the_strides_of_the_public_ones(keras: bool, numbers: int) -> None:
    network = ResNet50(keras).eval()
    assert sum(p.numel() for p in network.parameters()) == numbers
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 2048, 2, 2)
    halving = network.layer2[0].conv1 if keras else network.layer2[0].conv2
    assert halving.stride == (2, 2)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_features_of_squeezenet_are_means_of_its_last_map(tmp_path: Path, suffix: str) -> None:
    weights, path = public_squeezenet(), tmp_path / f"squeezenet1_1{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    extractor = find_extractor(str(path))
    assert extractor.name.startswith(f"SqueezeNet 1.1, squeezenet1_1{suffix} sha256:")
    network = SqueezeNet()
    network.load_state_dict({k: v for k, v in weights.items() if k.startswith("features.")})
    coloured = images().expand(-1, 3, -1, -1) - torch.tensor(MEANS)[:, None, None]
    with torch.inference_mode():
        expected = network(coloured)[-1].mean((2, 3))
        torch.testing.assert_close(extractor(images()), expected)


@pytest.mark.parametrize("layout", ["torchvision", "keras", "sequence"])
def test_weights_of_resnet_are_known_by_their_names(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(0)
    network = ResNet50(keras=layout == "keras").eval()
    weights = dict(network.state_dict())
    if layout == "torchvision":
        weights |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    if layout == "sequence":
        order = {name: k for k, name in enumerate(("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4"))}
        split = {name: name.partition(".") for name in weights}
        weights = {f"backbone.{order[split[name][0]]}.{split[name][2]}": weights[name] for name in weights}
    torch.save(weights, tmp_path / "resnet.pth")
    extractor = find_extractor(str(tmp_path / "resnet.pth"))
    coloured = images().expand(-1, 3, -1, -1) - torch.tensor(MEANS)[:, None, None]
    with torch.inference_mode():
        torch.testing.assert_close(extractor(images()), network(coloured).mean((2, 3)))


def test_weights_that_are_not_all_there_or_too_many_are_refused(tmp_path: Path) -> None:
    lacking = public_squeezenet()
    del lacking["features.9.squeeze.bias"]
    more = {**public_squeezenet(), "features.13.weight": torch.zeros(1)}
    for k, (weights, said) in enumerate(
        (
            (lacking, r"1 missing \(features\.9\.squeeze\.bias\)"),
            (more, r"1 unexpected \(features\.13\.weight\)"),
            ({"a": torch.zeros(2)}, "neither a TorchScript network nor known weights; accepted: scattering"),
        )
    ):
        torch.save(weights, tmp_path / f"{k}.pth")
        with pytest.raises(InvalidRequestError, match=said):
            find_extractor(str(tmp_path / f"{k}.pth"))
    (tmp_path / "noise.pt").write_bytes(b"no network")
    with pytest.raises(InvalidRequestError, match=r"noise\.pt is damaged or no file of weights only"):
        find_extractor(str(tmp_path / "noise.pt"))


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_torchscript_network_gets_three_channels_from_0_to_1_and_maps_are_averaged(tmp_path: Path) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "own.pt"))
    extractor = find_extractor(str(tmp_path / "own.pt"))
    np.testing.assert_allclose(extractor(images()), images().mean((2, 3)).expand(-1, 2), rtol=1e-6)


OWN = """
import torch

sizes = 3

def good(images):
    return images.mean((2, 3))

def flat(images):
    return images.mean((1, 2, 3))

def array(images):
    return images.mean((2, 3)).numpy()

def three(images):
    return torch.zeros(3, 5)

def raising(images):
    raise KeyError("bad")

def wordy(images):
    raise RuntimeError("out of memory\\nof the device")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user, which is imported anew."""
    (tmp_path / "own_features.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_features", raising=False)
    return "own_features"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "flat",
            r"features by \S+:flat \S+ are a tensor of shape \(2,\); accepted: a tensor of 2 rows, one for each image",
        ),
        ("array", r"features by \S+:array \S+ are ndarray; accepted: a tensor"),
        ("three", r"features by \S+:three \S+ are a tensor of shape \(3, 5\); accepted: a tensor of 2 rows"),
        ("wordy", r"features by \S+:wordy \S+ failed: RuntimeError: of the device$"),
        ("raising", r"features by \S+:raising \S+ failed: KeyError: 'bad'"),
    ],
)
def test_code_that_gives_no_features_is_told(own: str, name: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        find_extractor(f"{own}:{name}")(images()[:2])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sys:path", r"'sys:path' are of type list"),
        ("./own_features.py:good", r"cannot be imported: .*; accepted: module:callable, such as own:embed"),
        ("own_features:sizes", r"own_features:sizes' are of type int; accepted: module:callable"),
        ("own_broken:good", r"cannot be imported: .*SyntaxError"),
    ],
)
def test_code_that_cannot_be_had_is_refused(own: str, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "own_broken.py").write_text("def good(:")
    with pytest.raises(InvalidRequestError, match=said):
        find_extractor(name)


def test_code_is_told_with_the_sum_of_its_file(own: str, tmp_path: Path) -> None:
    total = sha256(tmp_path / "own_features.py")[:12]
    assert find_extractor(f"{own}:good").name == f"own_features:good sha256:{total}"
