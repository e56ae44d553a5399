"""The command line, called in this process, and small things for it to work on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Answer, Maisi, Patient

from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec, save_bundle
from maisi.bundle.places import packaged_names
from maisi.cli import main
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid

LEVELS: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
}


@pytest.fixture
def maisi(capfd: pytest.CaptureFixture[str]) -> Iterator[Maisi]:
    """The command line as a function of its arguments."""
    threads = torch.get_num_threads()

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    yield call
    torch.set_num_threads(threads)


def tiny_networks() -> dict[str, torch.nn.Module]:
    """An autoencoder of factor 2, a U-Net and a ControlNet, all with random weights and no zero layer."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 16), num_res_blocks=(1, 1), norm_groups=4))
        networks: dict[str, torch.nn.Module] = {
            "autoencoder": autoencoder,
            "unet": DenoisingUNet(UNetConfig(**LEVELS, regions=True, spacing=True, num_modalities=8)),
            "controlnet": ControlNet(ControlNetConfig(**LEVELS, num_modalities=8, embedding_widths=(4, 8))),
        }
        for network in networks.values():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            network.eval().requires_grad_(False)
        autoencoder.decoder.conv_out.bias.fill_(0.5)
    return networks


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights that takes sizes of multiples of 4, up to 48, at 2 to 6 mm."""
    info = BundleInfo(
        name="tiny",
        description="random weights",
        licence="none",
        vocabulary_version="1.0",
        scale_factor=0.8,
        scheduler=RectifiedFlowSpec(),
        limits=Limits(
            min_spacing_mm=(2.0, 2.0, 2.0),
            max_spacing_mm=(20.0, 20.0, 20.0),
            max_size=(48, 48, 48),
            held_to=(),  # random weights draw no anatomy
        ),
    )
    return save_bundle(Bundle.of(info, tiny_networks()), tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """An abdomen of 26 x 22 x 18 voxels of 14 mm."""
    folder = tmp_path_factory.mktemp("patient")
    rng, grid = np.random.default_rng(5), Grid.centered((26, 22, 18), (14.0, 14.0, 14.0))
    labels = draw_phantom("abdomen", grid, rng)
    write_labels(labels, folder / "labels.nii.gz")
    write_volume(render_phantom(labels, rng), folder / "ct.nii.gz")
    return Patient(folder / "ct.nii.gz", folder / "labels.nii.gz", grid)


@pytest.fixture
def packaged() -> str:
    """The name of the bundle that ships with the package."""
    if "ct-small" not in packaged_names():
        pytest.skip("the bundle ct-small is not packaged yet")
    return "ct-small"
