"""The shapes in annotations: held to in the tests of networks, diffusion and training, not there for users."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from maisi.diffusion.scheduler import RectifiedFlow
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.splitting.slabs import SlabTensor
from maisi.training.losses import kl_divergence

AUTOENCODER = AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_groups=4)
UNET = UNetConfig(
    channels=(8, 8), num_res_blocks=(1, 1), attention_levels=(False, True), head_channels=4, norm_groups=4, spacing=True
)
PLAIN_PYTHON = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxtyping", "beartype"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import torch
import maisi
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.shapes import LatentBatch
import maisi.pipelines.generate, maisi.training.diffusion

network = Autoencoder(AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_groups=4))
print(LatentBatch, tuple(network.encode(torch.zeros(1, 1, 4, 4, 4))[0].shape), hasattr(network.encode, "__wrapped__"))
"""


def latent(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def test_a_tensor_without_its_axis_of_channels_is_caught() -> None:
    with pytest.raises(TypeCheckError, match="'x'"):
        Autoencoder(AUTOENCODER).encode(torch.zeros(1, 4, 4, 4))


def test_integers_are_not_taken_for_a_latent() -> None:
    with pytest.raises(TypeCheckError, match="'latent'"):
        Autoencoder(AUTOENCODER).decode(torch.zeros(1, 4, 2, 2, 2, dtype=torch.int64))


def test_a_letter_is_one_number_throughout_a_call() -> None:
    with pytest.raises(TypeCheckError, match="'noise'"):
        RectifiedFlow().add_noise(latent(1, 4, 2, 2, 2), latent(1, 4, 2, 2, 3), 500.0)
    with pytest.raises(TypeCheckError, match="'log_variance'"):
        kl_divergence(latent(1, 4, 2, 2, 2), latent(1, 1, 2, 2, 2))
    with pytest.raises(TypeCheckError, match="'spacing'"):
        DenoisingUNet(UNET)(latent(2, 4, 2, 2, 2), torch.zeros(2), spacing=torch.ones(1, 3))


def test_a_spacing_of_two_axes_is_caught() -> None:
    with pytest.raises(TypeCheckError, match="'spacing'"):
        DenoisingUNet(UNET)(latent(1, 4, 2, 2, 2), torch.zeros(1), spacing=torch.ones(1, 2))


def test_slabs_have_the_shape_of_the_whole() -> None:
    network = Autoencoder(AUTOENCODER)
    with torch.inference_mode():
        assert network.encode(SlabTensor.split(torch.zeros(1, 1, 8, 4, 4), 2))[0].shape == (1, 4, 4, 2, 2)
        with pytest.raises(TypeCheckError, match="'x'"):
            network.encode(SlabTensor.split(torch.zeros(1, 8, 4, 4), 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_without_data_and_of_any_precision_have_shapes(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        network = Autoencoder(AUTOENCODER).to(dtype)
        assert network.encode(torch.zeros(1, 1, 4, 4, 4, dtype=dtype))[0].shape == (1, 4, 2, 2, 2)
        with pytest.raises(TypeCheckError, match="'x'"):
            network.encode(torch.zeros(1, 4, 4, 4, dtype=dtype))


def test_what_a_function_itself_refuses_is_seen_without_the_checks(unchecked: None) -> None:
    assert kl_divergence(latent(1, 4, 2, 2, 2), latent(1, 1, 2, 2, 2)).shape == ()


def test_users_need_no_checker_and_pay_for_none() -> None:
    run = subprocess.run([sys.executable, "-c", PLAIN_PYTHON], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "typing.Any (1, 4, 2, 2, 2) False"


def test_the_checker_is_not_loaded_by_the_package() -> None:
    code = "import sys, maisi.pipelines.generate, maisi.training.diffusion; print('jaxtyping' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
