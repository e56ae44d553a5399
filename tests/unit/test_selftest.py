"""The self-test passes on the packaged bundle and finds what was spoilt on purpose, in the right row."""

import copy
import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from maisi.bundle.bundle import Bundle, load_bundle
from maisi.compute.compute import Compute
from maisi.evaluation.selftest import Check, Trial, periodic_power, selftest, split_decoder, stitch_step
from maisi.pipelines.requests import GenerateRequest
from maisi.splitting import SlabTensor

REQUEST = GenerateRequest(
    region="chest", size=(48, 48, 32), spacing=(5.0, 5.0, 5.0), force=True, compute=Compute(precision="float32")
)


@pytest.fixture(scope="module")
def packaged() -> Bundle:
    return load_bundle("ct-small")


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


def with_network(bundle: Bundle, name: str, change: object) -> Bundle:
    networks = {each: bundle.network(each) for each in bundle.names}
    networks[name] = copy.deepcopy(networks[name])
    change(networks[name])  # type: ignore[operator]
    return Bundle.of(bundle.info, networks)


def without_labels(bundle: Bundle) -> Bundle:
    """The autoencoder alone: what is checked of it needs no sampling."""
    return Bundle.of(bundle.info.model_copy(update={"scheduler": None}), {"autoencoder": bundle.autoencoder})


def test_the_packaged_bundle_passes_every_check(packaged: Bundle) -> None:
    checks = list(selftest(Trial.of(packaged, REQUEST), steps=8))
    assert failed(checks) == []
    assert len(checks) == 10
    assert all(check.number is not None for check in checks)


def test_a_bundle_without_a_unet_is_asked_only_what_it_can_answer(packaged: Bundle) -> None:
    checks = list(selftest(Trial.of(without_labels(packaged), REQUEST)))
    assert failed(checks) == []
    assert [check.name for check in checks if check.passed is None] == [
        "labels are followed",
        "the ControlNet does it",
        "steering is not too strong",
    ]


def test_slabs_that_do_not_see_their_neighbours_show_seams(packaged: Bundle) -> None:
    bundle = without_labels(packaged)
    right = split_decoder(bundle.autoencoder)

    def alone(latent: Tensor, parts: int, axis: int) -> Tensor:
        cuts = [latent.shape[2 + axis] * k // parts for k in range(parts + 1)]
        slabs = [latent.narrow(2 + axis, a, b - a) for a, b in pairwise(cuts)]
        return torch.cat([right(slab, 1, axis) for slab in slabs], 2 + axis)

    assert failed(list(selftest(Trial.of(bundle, REQUEST, alone)))) == ["split equals whole", "no seams"]


def test_seams_are_looked_for_where_slabs_of_unequal_size_meet(packaged: Bundle) -> None:
    bundle = without_labels(packaged)
    request = REQUEST.model_copy(update={"size": (52, 52, 36)})
    right = split_decoder(bundle.autoencoder)

    def stepped(latent: Tensor, parts: int, axis: int) -> Tensor:
        """A step of a thousandth at the third border along x."""
        result = right(latent, parts, axis).clone()
        sizes = SlabTensor.split(latent, parts, axis).sizes
        border = sum(sizes[:3]) * (result.shape[2 + axis] // latent.shape[2 + axis])
        result.narrow(2 + axis, border, result.shape[2 + axis] - border).add_(1e-3 * (parts > 1 and axis == 0))
        return result

    assert failed(list(selftest(Trial.of(bundle, request, stepped)))) == ["split equals whole", "no seams"]


def test_a_decoder_that_repeats_a_pattern_shows_a_checkerboard(packaged: Bundle) -> None:
    def spoil(autoencoder: torch.nn.Module) -> None:
        for module in autoencoder.decoder.modules():
            if isinstance(module, torch.nn.ConvTranspose3d):
                module.weight.data[..., ::2] *= 1.3

    checks = list(selftest(Trial.of(with_network(without_labels(packaged), "autoencoder", spoil), REQUEST)))
    assert "checkerboard" in failed(checks)


def test_latents_that_are_mostly_noise_are_found(packaged: Bundle) -> None:
    def spoil(autoencoder: torch.nn.Module) -> None:
        torch.nn.init.zeros_(autoencoder.to_log_variance.weight)
        torch.nn.init.constant_(autoencoder.to_log_variance.bias, 1.0)

    checks = list(selftest(Trial.of(with_network(without_labels(packaged), "autoencoder", spoil), REQUEST)))
    assert failed(checks) == ["latents hold the volume"]


def test_an_autoencoder_that_blurs_loses_detail_and_the_yardstick(packaged: Bundle) -> None:
    def spoil(autoencoder: torch.nn.Module) -> None:
        decode = autoencoder.decode

        def blurred(latent: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool3d(decode(latent), 5, stride=1, padding=2)

        autoencoder.decode = blurred

    found = failed(list(selftest(Trial.of(with_network(without_labels(packaged), "autoencoder", spoil), REQUEST))))
    assert {"reconstruction, phantom", "detail"} <= set(found)


def test_a_controlnet_that_steers_nothing_is_found(packaged: Bundle) -> None:
    def spoil(controlnet: torch.nn.Module) -> None:
        for name, parameter in controlnet.named_parameters():
            if "zero" in name or "out" in name.split(".")[0]:
                parameter.data.zero_()

    checks = list(selftest(Trial.of(with_network(packaged, "controlnet", spoil), REQUEST), steps=4))
    assert {"labels are followed", "the ControlNet does it"} & set(failed(checks))


def test_steering_four_times_as_strong_as_it_was_made_for_is_found(packaged: Bundle) -> None:
    strong = packaged.info.model_copy(update={"controlnet_scale": 4 * packaged.info.controlnet_scale})
    checks = list(selftest(Trial.of(dataclasses.replace(packaged, info=strong), REQUEST), steps=8))
    assert failed(checks) == ["steering is not too strong"]


def test_power_at_a_period_stands_out_of_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(48, 40, 32))
    assert periodic_power(noise, 4) < 1.5
    pattern = 0.7 * np.cos(2 * np.pi * np.arange(40) / 4)
    assert periodic_power(noise + pattern[:, None], 4) > 1.8
    assert periodic_power(noise + pattern[:, None], 3) < 1.5


def test_a_step_at_a_slab_border_stands_out_and_a_slope_does_not() -> None:
    slope = torch.linspace(0, 1, 64).view(1, 1, 64, 1, 1).expand(1, 1, 64, 4, 4).contiguous()
    borders = range(8, 64, 8)
    assert stitch_step(slope, borders, 0) < 1e-6
    stepped = slope.clone()
    stepped[:, :, 32:] += 0.01
    assert stitch_step(stepped, borders, 0) == pytest.approx(0.01, rel=1e-3)
    assert stitch_step(stepped, [20, 44], 0) < 1e-6
