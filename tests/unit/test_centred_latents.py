"""Latents are centred without changing the volumes that they stand for."""

import numpy as np
import torch

from maisi.data.dataset import PatchSource
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.recipes.stages import centred_autoencoder


@torch.no_grad()
def test_centred_latents_have_mean_zero_and_give_the_same_volumes() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)).eval()
    torch.nn.init.normal_(autoencoder.to_mean.bias, std=2.0)
    array = np.random.default_rng(0).integers(0, 65536, (16, 16, 16)).astype(np.uint16)
    source = PatchSource([array], np.ones(1))
    shifted = centred_autoencoder(autoencoder, source, batch=2, patch=(16, 16, 16), seed=3)

    volume = torch.from_numpy(array.astype(np.float32) / 65535)[None, None]
    before, after = autoencoder.encode(volume)[0], shifted.encode(volume)[0]
    assert float(before.mean((0, 2, 3, 4)).abs().max()) > 0.5
    assert float(after.mean((0, 2, 3, 4)).abs().max()) < 0.05  # of one of the eight flips that are drawn alike
    torch.testing.assert_close(shifted.decode(after), autoencoder.decode(before), rtol=0, atol=1e-5)
