"""Our patch discriminator against MONAI's, same weights."""

import pytest
import torch
from oracle_networks import check, draw, drawn_network, oracle_of, relative_error

from maisi.networks.discriminator import DiscriminatorConfig

CONFIGS = {"small": DiscriminatorConfig(in_channels=2, channels=8, num_layers=2), "as-trained": DiscriminatorConfig()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_feature_map_equals_that_of_monai(config, dtype):
    ours = drawn_network(config, dtype)
    volume = draw(2, config.in_channels, 32, 24, 40, dtype=dtype)
    with torch.inference_mode():
        pairs = zip(ours(volume), oracle_of(ours)(volume), strict=True)
        errors = [relative_error(got, expected) for got, expected in pairs]
    assert len(errors) == config.num_layers + 2
    check(dict(enumerate(errors)), dtype)


def test_a_discriminator_has_as_many_parameters_as_the_trained_one():
    ours = drawn_network(DiscriminatorConfig(), torch.float32)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2_770_977
    assert len(ours.state_dict()) == 7
