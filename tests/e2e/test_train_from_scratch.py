"""The guide from raw scans to a volume, with few steps: every command of it works on what the one before left."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Maisi

from maisi.bundle.bundle import load_bundle
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "train-from-scratch.md"
SHORT = (
    "autoencoder.loop.num_steps=4",
    "autoencoder.loop.validate_every=4",
    "autoencoder.patch=[16, 16, 16]",
    "diffusion.loop.num_steps=2",
    "diffusion.loop.validate_every=2",
    "diffusion.sizes=[[8, 8, 8]]",
    "controlnet.loop.num_steps=2",
    "controlnet.loop.validate_every=2",
    "controlnet.sizes=[[8, 8, 8]]",
    "segmenter.loop.num_steps=2",
    "segmenter.loop.validate_every=2",
    "latents.num_phantoms=1",
    "latents.max_size=[32, 32, 32]",
    "measured_samples=0",
)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for k, region in enumerate(("chest", "abdomen", "chest")):
        rng = np.random.default_rng(k)
        grid = Grid.centered((40, 32, 32), (9.0, 9.0, 9.0))
        labels = draw_phantom(region, grid, rng)
        folder = tmp_path / "scans" / f"p{k}"
        folder.mkdir(parents=True)
        write_volume(render_phantom(labels, rng), folder / "ct.nii.gz")
        write_labels(LabelMap(labels.array.astype(np.uint8), grid), folder / "labels_maisi.nii.gz")
    return tmp_path / "scans"


def test_the_guide_leads_from_scans_to_a_volume(
    maisi: Maisi, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^maisi (.*?)(?:\s+#.*)?$", GUIDE.read_text().split("## One network")[0], re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["prepare", "train", "train", "generate"]
    for command in commands:
        words = command.replace("scans/", str(scans)).split()
        if words[0] == "prepare":
            words += ["--multiple", "16", "--validation", "0.4", "--split-seed", "0"]
        if words[0] == "train":
            words += [part for setting in SHORT for part in ("--set", setting)]
        if words[0] == "generate":
            words += ["--size", "16", "16", "16", "--spacing", "6", "6", "6", "--steps", "1"]
        done = maisi(*words)
        assert done.code == 0, done.err
        if "--dry-run" in words:
            assert "autoencoder" in done.out
            assert "controlnet" in done.out
            assert not (tmp_path / "runs").exists()
    run = tmp_path / "runs" / "tiny"
    assert set(load_bundle(run / "bundle").names) == {"autoencoder", "unet", "controlnet", "segmenter"}
    assert sorted(path.name for path in (run / "autoencoder" / "pictures").iterdir()) == ["step_000004.png"]
    lines = [json.loads(line) for line in (run / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("split", "training") for line in lines] == ["training"] * 4 + ["validation"]
    assert np.isfinite(read_volume(tmp_path / "out" / "sample_000_ct.nii.gz").array).all()


def test_a_recipe_that_does_not_fit_the_memory_is_refused_with_what_would_do(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    assert maisi("prepare", scans, "--out", tmp_path / "store", "--multiple", "16").code == 0
    given = ("train", "autoencoder", "tiny", "--manifest", tmp_path / "store", "--out", tmp_path / "run")
    refused = maisi(*given, "--memory", "1MB", "--dry-run")
    assert refused.code == 2
    least = re.search(r"--memory (\d+)MB or more", refused.err)
    assert least is not None
    short = [part for setting in SHORT for part in ("--set", setting)]
    assert maisi(*given, *short, "--memory", f"{least[1]}MB", "--dry-run").code == 0
    answer = maisi("plan", "--train", "tiny", "--json")
    assert -(-answer.json["autoencoder"]["total"] // 10**6) <= int(least[1])
