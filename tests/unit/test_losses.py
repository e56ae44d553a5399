"""Losses of the autoencoder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maisi.errors import InvalidRequestError
from maisi.networks.trunks import OrientedEdges
from maisi.training.losses import (
    discriminator_loss,
    generator_loss,
    kl_divergence,
    perceptual_loss,
    squeezenet_features,
)

WIDTHS = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
WIDTHS |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}


def squeezenet_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weights = {"features.0.weight": torch.randn(64, 3, 3, 3) / 5, "features.0.bias": torch.randn(64)}
    for fire, (width, squeezed, expanded) in WIDTHS.items():
        shapes = {
            "squeeze": (squeezed, width, 1, 1),
            "expand1x1": (expanded, squeezed, 1, 1),
            "expand3x3": (expanded, squeezed, 3, 3),
        }
        for part, shape in shapes.items():
            weights[f"features.{fire}.{part}.weight"] = torch.randn(shape) / (shape[1] * shape[2] ** 2) ** 0.5
            weights[f"features.{fire}.{part}.bias"] = torch.zeros(shape[0])
    return weights


def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    real = torch.rand(1, 1, 36, 40, 44, generator=generator)
    return real, real + 0.1 * torch.randn(real.shape, generator=generator)


def test_a_standard_normal_posterior_has_no_kl() -> None:
    zeros = torch.zeros(2, 4, 3, 3, 3)
    assert kl_divergence(zeros, zeros) == 0
    assert kl_divergence(zeros + 2.0, zeros) == pytest.approx(2.0)


def test_kl_does_not_depend_on_the_size_of_a_patch() -> None:
    mean, log_variance = torch.full((1, 4, 2, 2, 2), 0.5), torch.full((1, 4, 2, 2, 2), -1.0)
    larger = [x.repeat(1, 1, 3, 2, 2) for x in (mean, log_variance)]
    assert kl_divergence(mean, log_variance) == pytest.approx(float(kl_divergence(*larger)))


def test_least_squares_losses_are_zero_where_each_side_has_won() -> None:
    ones, zeros = torch.ones(1, 1, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3)
    assert generator_loss(ones) == 0
    assert discriminator_loss(ones, zeros) == 0
    assert discriminator_loss(zeros, ones) == 1


@pytest.mark.parametrize("kind", ["edges", "squeezenet"])
def test_perceptual_distance_is_zero_only_for_equal_volumes(tmp_path: Path, kind: str) -> None:
    save_file(squeezenet_weights(), tmp_path / "squeezenet.safetensors")
    network = OrientedEdges() if kind == "edges" else squeezenet_features(str(tmp_path / "squeezenet.safetensors"))
    real, fake = volumes()
    fake.requires_grad_()
    assert perceptual_loss(network, real, real, 2, torch.Generator().manual_seed(0)) == 0
    loss = perceptual_loss(network, fake, real, 2, torch.Generator().manual_seed(0))
    loss.backward()
    assert float(loss.detach()) > 1e-3
    assert fake.grad is not None
    assert bool(torch.isfinite(fake.grad).all())
    assert float(fake.grad.abs().max()) > 0


def test_squeezenet_has_the_seven_taps_of_lpips(tmp_path: Path) -> None:
    save_file(squeezenet_weights(), tmp_path / "squeezenet.safetensors")
    taps = squeezenet_features(str(tmp_path / "squeezenet.safetensors"))(torch.rand(2, 1, 64, 64))
    assert [tap.shape[1] for tap in taps] == [64, 128, 256, 384, 384, 512, 512]
    assert [tap.shape[2] for tap in taps] == [31, 15, 7, 3, 3, 3, 3]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = squeezenet_weights()
    del weights["features.9.squeeze.bias"]
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequestError, match=r"1 missing \(features\.9\.squeeze\.bias\)"):
        squeezenet_features(str(tmp_path / "other.safetensors"))
