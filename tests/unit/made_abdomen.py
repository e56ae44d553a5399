"""A small abdomen in files, and a bundle of random weights that draws in it."""

from pathlib import Path

import numpy as np
import torch

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, Limits, RectifiedFlowSpec
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

VOCABULARY = load_vocabulary()
LIVER, TUMOUR, BODY = (VOCABULARY.id(name) for name in ("liver", "hepatic tumor", "body"))
GRID = Grid.centered((40, 36, 28), (4.0, 4.0, 4.0))
LIMITS = Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(8, 8, 8), max_size=(48, 48, 48))
LEVELS = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 9,
}


def random_bundle() -> Bundle:
    """Networks of random weights that take 2 to 8 mm and up to 48 voxels, sizes that are multiples of 4."""
    torch.manual_seed(0)
    networks = {
        "autoencoder": Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)),
        "unet": DenoisingUNet(UNetConfig(**LEVELS, regions=True, spacing=True)),
        "controlnet": ControlNet(ControlNetConfig(**LEVELS, embedding_widths=(4, 8))),
    }
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    networks["autoencoder"].decoder.conv_out.bias.data.fill_(0.5)
    info = BundleInfo(
        name="tiny", licence="none", vocabulary_version="1.0", scheduler=RectifiedFlowSpec(), limits=LIMITS
    )
    return Bundle.of(info, networks)


def write_abdomen(folder: Path) -> Path:
    """A body of soft tissue with a liver in it, as ct.nii, labels.nii and others; noise of 10 HU."""
    x, y, z = (np.abs(axis) for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in GRID.shape], indexing="ij"))
    ids = np.where(x**2 + y**2 < 0.85, BODY, 0)
    ids[(x**2 + y**2 + z**2) < 0.45] = LIVER
    hu = np.select([ids == LIVER, ids == BODY], [110.0, 40.0], -1000.0)
    hu += np.random.default_rng(0).normal(0, 10, GRID.shape) * (ids > 0)
    write_volume(Volume(hu, GRID), folder / "ct.nii")
    write_labels(LabelMap(ids.astype(np.uint8), GRID), folder / "labels.nii")
    mask = np.zeros(GRID.shape, np.uint8)
    mask[18:23, 16:21, 12:16] = 1
    write_labels(LabelMap(mask, GRID), folder / "mask.nii")
    write_labels(LabelMap(np.where(mask > 0, TUMOUR, ids).astype(np.uint8), GRID), folder / "diseased.nii")
    write_volume(Volume(np.where(mask > 0, 50.0, hu), GRID), folder / "diseased_ct.nii")
    write_labels(LabelMap(np.zeros_like(mask), GRID), folder / "nothing.nii")
    write_labels(LabelMap(mask[1:], Grid.centered((39, 36, 28), (4.0, 4.0, 4.0))), folder / "elsewhere.nii")
    write_labels(LabelMap(np.roll(mask, (-18, -16), (0, 1)), GRID), folder / "outside.nii")
    return folder
