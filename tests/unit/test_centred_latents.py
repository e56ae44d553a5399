"""Latents are centred without changing the volumes that they stand for."""

from pathlib import Path

import numpy as np
import torch

from maisi.data.latents import Latent, LatentStore, latent_scale, write_latent
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.pipelines.codec import encode
from maisi.recipes.recipe import centre_latents
from maisi.space.grid import Grid
from maisi.space.volume import Volume


@torch.no_grad()
def test_centred_latents_have_mean_zero_and_give_the_same_volumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)).eval()
    torch.nn.init.normal_(autoencoder.to_mean.bias, std=2.0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, size in zip(paths, ((16, 16, 16), (8, 12, 16)), strict=True):
        write_latent(latent(autoencoder, size), path)
    cases = LatentStore(paths)
    shifted, moved = centre_latents(autoencoder, cases)

    together = torch.cat([case.mean[0].double().flatten(1) for case in moved], 1)
    assert float(together.mean(1).abs().max()) < 1e-3
    assert float(torch.cat([case.mean[0].double().flatten(1) for case in cases], 1).mean(1).abs().max()) > 0.5
    assert latent_scale(moved) > latent_scale(cases)
    x = torch.rand(1, 1, 16, 16, 16)
    mean = shifted.encode(x)[0]
    assert float((mean - autoencoder.encode(x)[0]).abs().max()) > 0.5
    torch.testing.assert_close(shifted.decode(mean), autoencoder.decode(autoencoder.encode(x)[0]), rtol=0, atol=1e-5)


def latent(autoencoder: Autoencoder, size: tuple[int, int, int]) -> Latent:
    volume = np.random.default_rng(0).normal(0, 100, size).astype(np.float32)
    return encode(autoencoder, Volume(volume, Grid.centered(size, (3.0, 3.0, 3.0))), dtype=torch.float16)
