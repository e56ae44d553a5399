"""Low-rank adapters: silent at first, the only part that learns, and gone after a merge."""

import copy
from pathlib import Path

import pytest
import torch
from made_bundle import LEVELS
from torch import Tensor, nn

from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.training.lora import LoraConfig, add_adapters, base_digest, load_adapters, merge_adapters, save_adapters

X = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([400.0])


def network(seed: int = 0) -> DenoisingUNet:
    torch.manual_seed(seed)
    unet = DenoisingUNet(UNetConfig(**LEVELS))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def learn(unet: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.Adam((p for p in unet.parameters() if p.requires_grad), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        unet(X, T).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def answer(unet: nn.Module) -> Tensor:
    return unet(X, T)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_new_adapters_change_no_bit(half: bool) -> None:
    plain = network()
    adapted = copy.deepcopy(plain)
    names = add_adapters(adapted, LoraConfig(rank=4))
    assert {"conv_in", "time_embedding.0", "middle.attention.attention.query", "conv_out"} <= set(names)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(answer(adapted), answer(plain))


def test_only_adapters_learn_and_a_merge_keeps_what_they_learned() -> None:
    plain = network()
    adapted = copy.deepcopy(plain)
    add_adapters(adapted, LoraConfig(rank=2, alpha=4.0, targets=("*.attention.*", "up.*")))
    learned = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(name.endswith(("weight.0.up", "weight.0.down")) for name in learned)
    before = base_digest(adapted)
    learn(adapted)
    assert base_digest(adapted) == before == base_digest(plain)
    found = answer(adapted)
    assert not torch.allclose(found, answer(plain), atol=1e-3)
    merge_adapters(adapted)
    assert {n: p.shape for n, p in adapted.state_dict().items()} == {n: p.shape for n, p in plain.state_dict().items()}
    assert {type(module) for module in adapted.modules()} == {type(module) for module in plain.modules()}
    torch.testing.assert_close(answer(adapted), found, rtol=1e-5, atol=1e-5)
    untouched = [n for n, p in plain.state_dict().items() if n.startswith("down.") and "attention." not in n]
    assert untouched
    assert all(torch.equal(adapted.state_dict()[n], plain.state_dict()[n]) for n in untouched)


def test_saved_adapters_come_back_on_the_same_network_alone(tmp_path: Path) -> None:
    path, config = tmp_path / "adapters.safetensors", LoraConfig(rank=2, targets=("up.*",))
    adapted = network()
    add_adapters(adapted, config)
    learn(adapted)
    save_adapters(adapted, config, path)
    again = network()
    assert load_adapters(again, path) == config
    assert torch.equal(answer(again), answer(adapted))
    with pytest.raises(InvalidRequestError, match="trained on a network with other weights"):
        load_adapters(network(1), path)
    with pytest.raises(InvalidRequestError, match="holds no adapters"):
        load_adapters(network(), tmp_path / "none")


def test_a_controlnet_takes_adapters_too() -> None:
    controlnet = ControlNet(ControlNetConfig(**LEVELS, embedding_widths=(4, 8)))
    names = add_adapters(controlnet, LoraConfig(targets=("condition_embedding.*", "zero_*")))
    assert "zero_middle" in names
    assert "condition_embedding.conv_out" in names
    assert "conv_in" not in names


def test_a_target_that_names_no_layer_is_refused() -> None:
    with pytest.raises(
        InvalidConfigError, match=r"no layer is called 'mid\.\*'; there are \d+, such as time_embedding\.0"
    ):
        add_adapters(network(), LoraConfig(targets=("up.*", "mid.*")))
