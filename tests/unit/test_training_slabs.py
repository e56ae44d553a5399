"""A step on slabs is the step on the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from maisi.diffusion.denoiser import predict
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.trunks import OrientedEdges
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.runs.tasks.train import _check_shares
from maisi.training.autoencoder import AutoencoderTraining, _reconstruct
from maisi.training.learner import Learner, MicroBatch
from maisi.training.loop import LoopConfig
from maisi.training.optimization import Optimization
from maisi.training.slabs import Slabs, gathered

LEVELS: dict[str, Any] = {
    "channels": (4, 8),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 4,
    "norm_groups": 2,
}
PLAIN = Optimization(precision="float32", warmup=0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(network: nn.Module) -> Any:
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.double().to(memory_format=torch.channels_last_3d)


def steered() -> tuple[dict[str, nn.Module], Callable[[Slabs], Tensor]]:
    unet = filled(DenoisingUNet(UNetConfig(**LEVELS)))
    controlnet = filled(ControlNet(ControlNetConfig(**LEVELS, embedding_widths=(2, 4), occupancy_ids=(3,))))
    x, t = random(1, 4, 4, 8, 4), torch.tensor([300.0], dtype=torch.float64)
    bits = (random(1, 8, 8, 16, 8, seed=2) > 0).double()

    def loss(slabs: Slabs) -> Tensor:
        (seen,) = gathered(controlnet.embed_condition(slabs.split(bits)))
        answer = predict(unet, controlnet, slabs.split(x), t, conditions={}, embedding=slabs.split(seen))
        return (gathered(answer)[0] - random(1, 4, 4, 8, 4, seed=3)).square().mean()

    return {"unet": unet, "controlnet": controlnet}, loss


def reconstructed() -> tuple[dict[str, nn.Module], Callable[[Slabs], Tensor]]:
    network = filled(Autoencoder(AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_groups=2)))
    config = AutoencoderTraining(network=network.config, loop=LoopConfig(num_steps=1), optimization=PLAIN)
    real = random(1, 1, 8, 16, 8).clamp(0, 1)

    def loss(slabs: Slabs) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        _, losses = _reconstruct(config, network, real, OrientedEdges(), draw, "float32", slabs)
        return losses["reconstruction"] + 0.1 * losses["kl"]

    return {"autoencoder": network}, loss


@pytest.mark.parametrize("slabs", [2, 3, 4])
@pytest.mark.parametrize("case", [steered, reconstructed])
def test_gradients_of_a_split_step_are_those_of_the_whole(case: Callable[[], Any], slabs: int) -> None:
    networks, loss = case()
    parameters = [p for network in networks.values() for p in network.parameters()]
    whole = torch.autograd.grad(loss(Slabs()), parameters)
    split = torch.autograd.grad(loss(Slabs(slabs)), parameters)
    scale = max(float(gradient.abs().max()) for gradient in whole)
    assert scale > 1e-3
    for got, wanted in zip(split, whole, strict=True):
        assert float((got - wanted).abs().max()) < 1e-12 * scale


def test_a_learner_takes_the_same_step_on_slabs() -> None:
    ends = []
    for slabs in (1, 2):
        networks, loss = steered()
        learner = Learner(networks, PLAIN.model_copy(update={"slabs": slabs}), num_steps=2)
        told = learner.update(0, [MicroBatch(lambda precision, of=learner, loss=loss: {"loss": loss(of.slabs)})])
        ends.append((told["loss"], told["grad_norm"], *(p.detach() for n in networks.values() for p in n.parameters())))
    for split, whole in zip(*ends, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-9)


def test_fewer_slabs_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    _check_shares(PLAIN.model_copy(update={"slabs": 3}))  # one batch a step, of which each has a slab
    for config, said in (({"slabs": 2}, "3 processes cannot share 2 slabs"), ({}, "cannot share 1 batches")):
        with pytest.raises(InvalidRequestError, match=said):
            _check_shares(PLAIN.model_copy(update=config))


@pytest.mark.parametrize("more", [{"sharded": True}, {"checkpoint_activations": True}, {"precision": "bfloat16"}])
def test_what_slabs_cannot_be_combined_with_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="slabs learn with precision float32"):
        Optimization.model_validate({"slabs": 2, "precision": "float32", **more})
