"""How different two volumes look."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maisi.errors import InvalidRequestError
from maisi.evaluation.fidelity import box_blur
from maisi.evaluation.perceptual import SCALE, SHIFT, find_perceptual, perceptual_distance
from maisi.networks.trunks import TAP_CHANNELS, SqueezeNet
from maisi.space.grid import Grid
from maisi.space.volume import Volume


def weights() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A trunk and heads, filled at random, under the names of their public files."""
    torch.manual_seed(0)
    trunk = {k: v.clone() for k, v in SqueezeNet().state_dict().items()}
    return trunk, {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(TAP_CHANNELS)}


def as_one(trunk: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The 66 tensors of the state of LPIPS: its trunk in slices, heads twice, and the scaling of its inputs."""
    slices = {0: 1, 3: 2, 4: 2, 6: 3, 7: 3, 9: 4, 10: 5, 11: 6, 12: 7}
    named = {}
    for name, tensor in trunk.items():
        _, layer, rest = name.split(".", 2)
        named[f"net.slice{slices[int(layer)]}.{layer}.{rest}"] = tensor
    again = {name.replace("lin", "lins.", 1): tensor for name, tensor in heads.items()}
    scaling = {"scaling_layer.shift": torch.tensor(SHIFT), "scaling_layer.scale": torch.tensor(SCALE)}
    return {**named, **heads, **again, **scaling}


def volume(shape: tuple[int, int, int] = (40, 36, 44)) -> Volume:
    hu = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)
    return Volume(hu, Grid.centered(shape, (2, 2, 2)))


def test_lpips_is_the_weighted_distance_of_unit_maps(tmp_path: Path) -> None:
    trunk, heads = weights()
    save_file(trunk, tmp_path / "trunk.safetensors")
    torch.save(heads, tmp_path / "heads.pth")
    found = find_perceptual((tmp_path / "trunk.safetensors", tmp_path / "heads.pth"))
    a, b = torch.rand(2, 2, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    network = SqueezeNet()
    network.load_state_dict(trunk)
    expected = torch.zeros(2)
    with torch.no_grad():
        coloured = [
            (2 * x.repeat(1, 3, 1, 1) - 1 - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
            for x in (a, b)
        ]
        for k, (x, y) in enumerate(zip(*map(network, coloured), strict=True)):
            x, y = (torch.nn.functional.normalize(each, dim=1, eps=1e-10) for each in (x, y))
            expected += torch.nn.functional.conv2d((x - y) ** 2, heads[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
        torch.testing.assert_close(found(a, b), expected)
        assert float(found(a, a).max()) == 0.0
    assert found.figure == "lpips"
    assert "trunk.safetensors sha256:" in found.name


def test_one_file_of_all_of_lpips_gives_the_same(tmp_path: Path) -> None:
    trunk, heads = weights()
    whole = as_one(trunk, heads)
    assert len(whole) == 66
    assert sum(tensor.numel() for tensor in whole.values()) == 726_982
    torch.save(whole, tmp_path / "lpips.pth")
    torch.save({**trunk, **heads}, tmp_path / "both.pth")
    a, b = torch.rand(2, 1, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    one, other = (find_perceptual((tmp_path / name,))(a, b) for name in ("lpips.pth", "both.pth"))
    torch.testing.assert_close(one, other)


def test_weights_without_heads_are_refused(tmp_path: Path) -> None:
    torch.save(weights()[0], tmp_path / "trunk.pth")
    with pytest.raises(InvalidRequestError, match=r"7 missing \(lin0.*accepted: one file of LPIPS with SqueezeNet"):
        find_perceptual((tmp_path / "trunk.pth",))
    with pytest.raises(InvalidRequestError, match=r"no weights at .*none\.pth; accepted"):
        find_perceptual((tmp_path / "none.pth",))


def test_own_filters_tell_a_blur_from_noise_and_name_themselves() -> None:
    perceptual, original = find_perceptual(()), volume()
    noisy = Volume(original.array + np.float32(30), original.grid)
    assert "not LPIPS" in perceptual.name
    assert perceptual_distance(original, original, perceptual) == 0.0
    blurred, brighter = (perceptual_distance(original, x, perceptual) for x in (box_blur(original), noisy))
    assert blurred is not None
    assert brighter is not None
    assert blurred > 5 * brighter


def test_of_planes_that_are_too_small_nothing_is_said() -> None:
    assert perceptual_distance(volume((24, 24, 60)), volume((24, 24, 60)), find_perceptual(())) is None
    assert perceptual_distance(volume((40, 40, 8)), volume((40, 40, 8)), find_perceptual(())) == 0.0
