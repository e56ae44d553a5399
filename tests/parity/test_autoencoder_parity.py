"""Our autoencoder against MONAI's, same weights."""

import pytest
import torch
from oracle_networks import SMALL, check, draw, drawn_network, oracle_of, relative_error

from maisi.bundle.upstream import RELEASED

CONFIGS = {
    "small": SMALL["autoencoder"],
    "small-mask": SMALL["mask-autoencoder"],
    "released": RELEASED["rflow-ct"].autoencoder,
    "released-mask": RELEASED["mask-autoencoder"].autoencoder,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_latents_and_volumes_equal_those_of_monai(config, dtype):
    ours = drawn_network(config, dtype)
    reference = oracle_of(ours)
    size = tuple(n * config.factor for n in (4, 2, 6))
    volume = draw(1, config.in_channels, *size, dtype=dtype)
    latent = draw(1, config.latent_channels, *(n // config.factor for n in size), dtype=dtype)

    with torch.inference_mode():
        mean, log_variance = ours.encode(volume)
        expected_mean, expected_sigma = reference.encode(volume)
        errors = {
            "mean": relative_error(mean, expected_mean),
            "deviation": relative_error(torch.exp(log_variance / 2), expected_sigma),
            "volume": relative_error(ours.decode(latent), reference.decode(latent)),
        }
    check(errors, dtype)
