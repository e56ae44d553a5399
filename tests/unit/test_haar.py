"""An autoencoder that starts at the Haar transform gives back four of its eight coefficients, and learns on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor

from maisi.data.dataset import NamedVolumes, PatchSource, patch_source
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.space.grid import Grid
from maisi.space.volume import Volume
from maisi.training.autoencoder import AutoencoderTraining, train_autoencoder
from maisi.training.haar import start_at_haar
from maisi.training.loop import LoopConfig
from maisi.training.optimization import Optimization

NETWORK = AutoencoderConfig(
    channels=(8, 16), num_res_blocks=(1, 2), norm_groups=1, norm_eps=100.0, upsampling="transposed"
)


def projection(x: Tensor) -> Tensor:
    """Mean and first differences of every 2 x 2 x 2 voxels, put together again."""
    b, c, *size = x.shape
    cells = x.reshape(b, c, *[n for s in size for n in (s // 2, 2)])
    result = cells.mean((3, 5, 7), keepdim=True)
    for dim in (3, 5, 7):
        signs = torch.tensor([1.0, -1.0]).reshape([2 if d == dim else 1 for d in range(8)])
        result = result + (cells * signs).mean((3, 5, 7), keepdim=True) * signs
    return result.expand(cells.shape).reshape(x.shape)


def rough_volume() -> Tensor:
    return torch.rand(1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_it_starts_as_the_projection_onto_mean_and_differences(seed: int) -> None:
    torch.manual_seed(seed)
    network = Autoencoder(NETWORK).eval()
    x = rough_volume()
    assert float((network.decode(network.encode(x)[0]) - projection(x)).abs().max()) > 0.1
    start_at_haar(network)
    error = network.decode(network.encode(x)[0]) - projection(x)
    assert float(error.abs().max()) < 5e-3  # the norms divide by sqrt(variance + 100)


@pytest.mark.parametrize(
    "other",
    [
        {"upsampling": "trilinear"},
        {"latent_channels": 3},
        {"norm_groups": 2},
        {"channels": (4, 16)},
        {"channels": (8, 16, 16), "num_res_blocks": (1, 1, 1)},
    ],
)
def test_a_network_that_cannot_carry_the_transform_is_refused(other: dict) -> None:
    network = AutoencoderConfig.model_validate({**NETWORK.model_dump(), **other})
    with pytest.raises(ValidationError, match="haar needs two levels of at least 8 channels"):
        AutoencoderTraining(network=network, loop=LoopConfig(num_steps=1), start="haar")


def patches() -> PatchSource:
    rng = np.random.default_rng(0)
    hu = np.full((24, 24, 24), -1000.0, np.float32)
    hu[4:20, 4:20, 4:20] = 40 + 1500 * ndimage.gaussian_filter(rng.normal(size=(16, 16, 16)), 1.2)
    volume = Volume(hu, Grid.centered((24, 24, 24), (3.0, 3.0, 3.0)))
    return patch_source([(1.0, [NamedVolumes("a", lambda: [volume])])])


def error_after(steps: int, start: str, folder: Path) -> float:
    """Mean squared error of a patch through an autoencoder trained for so many steps."""
    source = patches()
    recipe = AutoencoderTraining(
        network=NETWORK,
        loop=LoopConfig(num_steps=steps),
        start=start,
        batch_size=1,
        patch=(16, 16, 16),
        optimization=Optimization(learning_rate=1e-3, warmup=5, average_decay=0.995, precision="float32"),
    )
    network = train_autoencoder(recipe, source, folder).eval()
    x = source.draw(1, (24, 24, 24), np.random.default_rng(1)).images
    with torch.no_grad():
        return float((network.decode(network.encode(x)[0]) - x).square().mean())


def test_training_from_there_is_far_ahead_of_a_plain_start(tmp_path: Path) -> None:
    plain, haar = (error_after(20, start, tmp_path / start) for start in ("plain", "haar"))
    assert haar < 0.2 * plain
