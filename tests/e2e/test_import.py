"""What upstream's scripts left behind comes over, and what is wrong in it is told by name."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from command_line import Maisi

from maisi.anatomy.regions import RegionSpan
from maisi.data.latents import LatentSource, LatentStore, read_entries, read_latent
from maisi.data.upstream_latents import read_embedding
from maisi.errors import InvalidRequestError
from maisi.pipelines.requests import GenerateRequest
from maisi.recipes.recipe import BundleRecipe


def write_embedding(folder: Path, name: str, **about: object) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(name)).normal(size=(8, 6, 4, 4)).astype(np.float32)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 2.0, 1.0]))
    nib.save(image, folder / f"{name}_emb.nii.gz")
    said = {"dim": [32, 24, 16], "spacing": [1.5, 1.5, 2.0], "modality": "ct", **about}
    (folder / f"{name}_emb.nii.gz.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    return array


def test_embeddings_become_latents_that_training_takes(maisi: Maisi, tmp_path: Path) -> None:
    regions = {"top_region_index": [0, 1, 0, 0], "bottom_region_index": [0, 0, 1, 0]}
    array = write_embedding(tmp_path / "in" / "a", "one", **regions)
    write_embedding(tmp_path / "in", "mr", modality="mri_t1", dim=[16, 24, 32], **regions)
    write_embedding(tmp_path / "in", "bad", spacing=[1.0, 1.0, 1.0])
    write_embedding(tmp_path / "in", "unknown", modality="pet")
    done = maisi("convert", tmp_path / "in", "--to", tmp_path / "out")
    assert done.code == 0, done.err
    assert "bad_emb.nii.gz: the side-car says [1.0, 1.0, 1.0] mm, the header [1.5, 1.5, 2.0] mm" in done.err
    assert "modality 'pet' has no code" in done.err
    assert "dim [16, 24, 32] is in the order of the file; not taken" in done.err
    assert sorted(entry.id for entry in read_entries(tmp_path / "out")) == ["mr", "one"]
    latent = read_latent(tmp_path / "out" / "one.safetensors")
    assert torch.equal(latent.mean[0], torch.from_numpy(array).movedim(-1, 0))
    assert float(latent.log_variance.max()) == -30.0
    assert (latent.grid.shape, latent.grid.spacing) == ((32, 24, 16), (1.5, 1.5, 2.0))
    assert (latent.span, latent.modality_code) == (RegionSpan.named("chest", "abdomen"), 1)
    mr = read_latent(tmp_path / "out" / "mr.safetensors")
    assert (mr.modality, mr.modality_code) == ("mr", 9)
    store = LatentStore([tmp_path / "out" / "one.safetensors"])
    (example,) = LatentSource(store, {}, 2, labelled=False).draw(0, 0, 1, ((4, 4, 4),))
    assert example.latent.shape == (1, 4, 4, 4, 4)


def test_an_embedding_without_its_side_car_is_refused_by_its_name(tmp_path: Path) -> None:
    write_embedding(tmp_path, "x")
    (tmp_path / "x_emb.nii.gz.json").unlink()
    with pytest.raises(InvalidRequestError, match=r"no side-car x_emb\.nii\.gz\.json"):
        read_embedding(tmp_path / "x_emb.nii.gz")


def convert(maisi: Maisi, tmp_path: Path, content: dict) -> tuple[dict, str]:
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    done = maisi("convert", tmp_path / "theirs.json", "--to", tmp_path / "ours.yaml", "--overwrite")
    assert done.code == 0, done.err
    return yaml.safe_load((tmp_path / "ours.yaml").read_text()), done.err


def test_settings_of_inference_become_a_request(maisi: Maisi, tmp_path: Path) -> None:
    theirs = {
        "num_output_samples": 2,
        "body_region": ["chest"],
        "anatomy_list": ["lung tumor"],
        "output_size": [256, 256, 128],
        "spacing": [1.5, 1.5, 4.0],
        "num_inference_steps": 30,
        "random_seed": "7",
        "autoencoder_tp_num_splits": 4,
        "controlnet": "$@controlnet_def",
    }
    ours, told = convert(maisi, tmp_path, theirs)
    request = GenerateRequest.model_validate(ours)
    assert (request.count, request.size, request.steps, request.seed) == (2, (256, 256, 128), 30, 7)
    assert "anatomy_list ['lung tumor']: " in told
    assert "the text '7' became the number" in told
    assert "autoencoder_tp_num_splits, controlnet" in told


def test_settings_of_training_become_recipes(maisi: Maisi, tmp_path: Path) -> None:
    theirs = {
        "controlnet_train": {
            "batch_size": 1,
            "lr": 1e-5,
            "n_epochs": 100,
            "fold": 0,
            "weighted_loss": 100,
            "weighted_loss_label": [23, 129],
            "use_region_contrasive_loss": True,
            "region_contrasive_loss_delta": 2.0,
            "region_contrasive_loss_weight": 0.01,
        },
        "controlnet_infer": {"num_inference_steps": 30},
    }
    ours, told = convert(maisi, tmp_path, theirs)
    recipe = BundleRecipe.model_validate(ours).for_controlnet()
    assert recipe.structure_weights == {"lung tumor": 100.0}
    assert recipe.contrast is not None
    assert (recipe.contrast.weight, recipe.contrast.delta) == (0.01, 2.0)
    assert (recipe.loop.epochs, recipe.optimization.learning_rate) == (100, 1e-5)
    assert "weighted_loss_label 129: no structure of the vocabulary" in told
    assert "use_region_contrasive_loss: spelt contrastive here" in told
    ours, _ = convert(maisi, tmp_path, {"diffusion_unet_train": {"batch_size": 1, "lr": 1e-5, "n_epochs": 1000}})
    assert BundleRecipe.model_validate(ours).for_unet().loop.epochs == 1000
    vae = {"batch_size": 1, "patch_size": [64, 64, 64], "lr": 1e-4, "n_epochs": 1, "kl_weight": 1e-7, "adv_weight": 0.1}
    ours, told = convert(maisi, tmp_path, {"autoencoder_train": vae})
    assert BundleRecipe.model_validate(ours).for_autoencoder().kl_weight == pytest.approx(1e-7 * 4 * 16**3)
    assert "of the sum over 16384 numbers" in told


def test_an_environment_names_its_checkpoints_and_its_wrong_path(maisi: Maisi, tmp_path: Path) -> None:
    theirs = {
        "trained_autoencoder_path": "models/autoencoder_v1.pt",
        "trained_diffusion_path": "models/diff_unet_3d_ddpm-ct.pt",
        "existing_ckpt_filepath": None,
        "all_anatomy_size_conditions_json": "datasets/configs/all_anatomy_size_conditions.json",
        "output_dir": "output",
    }
    ours, told = convert(maisi, tmp_path, theirs)
    assert ours["checkpoints"] == ["models/autoencoder_v1.pt", "models/diff_unet_3d_ddpm-ct.pt"]
    assert "it lies at datasets/all_anatomy_size_conditions.json" in told
    assert "existing_ckpt_filepath: none given" in told


def test_a_json_file_of_something_else_is_refused(maisi: Maisi, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"colour": 3}')
    done = maisi("convert", tmp_path / "x.json", "--to", tmp_path / "x.yaml")
    assert done.code == 2
    assert "none of upstream's settings that are known here" in done.err
    assert not (tmp_path / "x.yaml").exists()
