"""Latents of a recipe: what they say of the case that they were made from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maisi.data.manifest import Case
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.pipelines.conditioning import MODALITIES
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.variations import make_latents
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

GRID = Grid.centered((16, 16, 16), (8.0, 8.0, 8.0))


@pytest.mark.parametrize("as_prepared", [True, False])
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_latents_are_of_the_modality_of_their_case(modality: str, as_prepared: bool, tmp_path: Path) -> None:
    array = np.full(GRID.shape, -1000.0 if modality == "ct" else 0.0, np.float32)
    array[3:13, 3:13] = np.random.default_rng(0).normal(40.0, 10.0, (10, 10, 16))
    write_volume(Volume(array, GRID, modality), tmp_path / "scan.nii.gz")
    ids = np.full(GRID.shape, 200, np.uint8)
    ids[4:8, 4:8, 4:8] = 1
    write_labels(LabelMap(ids, GRID), tmp_path / "labels.nii.gz")
    case = Case.model_validate(
        {
            "id": "a",
            "image": tmp_path / "scan.nii.gz",
            "labels_maisi": tmp_path / "labels.nii.gz",
            "modality": modality,
            "span": ("chest", "chest"),
        }
    )
    settings = {"as_prepared": as_prepared, "tissues_only": 1.0, "spacing_mm": (8.0, 8.0), "max_size": (16, 16, 16)}
    recipe = BundleRecipe.model_validate({"name": "r", "licence": "none", "latents": settings})
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)).eval()
    (latent,) = make_latents(recipe, [case], autoencoder, 2, tmp_path / "latents")
    assert latent.modality_code == MODALITIES[modality]
    assert latent.modality == modality
    assert latent.labels is not None
    assert bool((latent.labels == 1).any()) == (modality == "mr")  # of a CT, tissues alone were asked for
