"""Latents are centred without changing the volumes that they stand for."""

import numpy as np
import torch

from maisi.anatomy.regions import RegionSpan
from maisi.data.latents import LatentCase, encode_case, latent_scale
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.recipes.bundle import centred
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume


@torch.no_grad()
def test_centred_latents_have_mean_zero_and_give_the_same_volumes() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)).eval()
    torch.nn.init.normal_(autoencoder.to_mean.bias, std=2.0)
    cases = [latent_case(autoencoder, size) for size in ((16, 16, 16), (8, 12, 16))]
    shifted, moved = centred(autoencoder, cases)

    together = torch.cat([case.mean.double().flatten(1) for case in moved], 1)
    assert float(together.mean(1).abs().max()) < 1e-3
    assert float(torch.cat([case.mean.double().flatten(1) for case in cases], 1).mean(1).abs().max()) > 0.5
    assert latent_scale(moved) > latent_scale(cases)
    x = torch.rand(1, 1, 16, 16, 16)
    mean = shifted.encode(x)[0]
    assert float((mean - autoencoder.encode(x)[0]).abs().max()) > 0.5
    torch.testing.assert_close(shifted.decode(mean), autoencoder.decode(autoencoder.encode(x)[0]), rtol=0, atol=1e-5)


def latent_case(autoencoder: Autoencoder, size: tuple[int, int, int]) -> LatentCase:
    grid = Grid.centered(size, (3.0, 3.0, 3.0))
    volume = Volume(np.random.default_rng(0).normal(0, 100, size).astype(np.float32), grid)
    labels = LabelMap(np.full(size, 200, np.uint8), grid)
    return encode_case(autoencoder, volume, labels, RegionSpan.named("chest"), 1, "real")
