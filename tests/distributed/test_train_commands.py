"""`maisi train diffusion` and `controlnet` over two processes, which do what one does."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from processes import maisi_on_ranks

from maisi.bundle.bundle import Bundle, BundleInfo, load_bundle, save_bundle
from maisi.cli import main
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_volume
from maisi.space.grid import Grid

LEVELS = {
    "channels": [8, 16],
    "num_res_blocks": [1, 1],
    "attention_levels": [False, False],
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 8,
}
PART = {
    "network": {**LEVELS, "regions": True, "spacing": True},
    "loop": {"num_steps": 2, "validate_every": 2},
    "sizes": [[8, 8, 8]],
    "optimization": {"precision": "float32", "accumulate": 2, "warmup": 1},
}
RECIPE = {
    "name": "tiny",
    "licence": "none",
    "diffusion": {**PART, "optimization": {**PART["optimization"], "sharded": True}},
    "controlnet": {**PART, "controlnet": {**LEVELS, "embedding_widths": [4, 8]}, "train_unet": True},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A manifest of two cases, the bundle of an autoencoder, their latents by it, and a recipe."""
    folder = tmp_path_factory.mktemp("given")
    cases = []
    for i, split in enumerate(("training", "validation")):
        rng = np.random.default_rng(i)
        labels = draw_phantom("chest", Grid.centered((16, 16, 16), (20.0, 20.0, 20.0)), rng)
        write_volume(render_phantom(labels, rng), folder / f"{i}.nii.gz")
        cases.append({"id": str(i), "image": f"{i}.nii.gz", "region": "chest", "split": split})
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2))
    info = BundleInfo(name="alone", licence="none", vocabulary_version="1.0")
    save_bundle(Bundle.of(info, {"autoencoder": network}), folder / "bundle")
    files = {name: str(folder / name) for name in ("manifest.json", "recipe.yaml", "bundle", "latents")}
    threads = torch.get_num_threads()
    encode = ["encode", "--manifest", files["manifest.json"], "--bundle", files["bundle"], "--out", files["latents"]]
    assert main([*encode, "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    return files


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_a_unet_and_a_controlnet_as_one_does(given: dict[str, str], tmp_path: Path) -> None:
    before = given["bundle"]
    for part in ("diffusion", "controlnet"):
        command = ["train", part, given["recipe.yaml"], "--latents", given["latents"], "--bundle", before]
        command += ["--threads", "1", "--out"]
        done = maisi_on_ranks(2, *command, tmp_path / part)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(tmp_path / part / "bundle")  # one rank tells
        assert json.loads((tmp_path / part / "run.json").read_text())["ranks"] == 2
        assert main([*command, str(tmp_path / f"{part} alone")]) == 0
        many, one = losses(tmp_path / part / part), losses(tmp_path / f"{part} alone" / part)
        assert len(one) == 3  # two steps and a look
        assert many == pytest.approx(one, rel=1e-4)
        before = str(tmp_path / part / "bundle")
    assert set(load_bundle(before).names) == {"autoencoder", "unet", "controlnet"}


def test_a_whole_recipe_over_processes_is_refused_with_the_commands_that_are_split(
    given: dict[str, str], tmp_path: Path
) -> None:
    command = ("train", "recipe", given["recipe.yaml"], "--manifest", given["manifest.json"])
    refused = maisi_on_ranks(2, *command, "--out", tmp_path / "out")
    assert refused.returncode != 0
    assert refused.stderr.count("error: several processes train one network at a time") == 1
    assert "torchrun with `maisi train autoencoder`" in refused.stderr
    assert not (tmp_path / "out").exists()
