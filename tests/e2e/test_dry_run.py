"""A dry run reaches all that the run itself will do, and learns from cases that it will learn from."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Maisi

from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_volume
from maisi.space.grid import Grid

RECIPE = {
    "name": "late",
    "licence": "none",
    "groups": {"seen": 1.0},
    "autoencoder": {
        "network": {"channels": [8, 8], "num_res_blocks": [1, 1], "norm_groups": 2},
        "discriminator": {"channels": 4, "num_layers": 2},
        "loop": {"num_steps": 900},
        "batch_size": 1,
        "early_patch": [8, 8, 8],
        "early_share": 0.9,
        "patch": [16, 16, 16],
        "adversarial_weight": 0.1,
        "adversarial_start": 850,
        "optimization": {"precision": "float32"},
    },
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases whose files are no scans, of a group that the recipe does not weigh, and one that it does."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    labels = draw_phantom("chest", Grid.centered((24, 24, 24), (12.0, 12.0, 12.0)), rng)
    write_volume(render_phantom(labels, rng), folder / "c.nii.gz")
    cases = [{"id": name, "group": "other", "image": f"{name}.nii.gz"} for name in ("a", "b")]
    for case in cases:
        (folder / case["image"]).touch()
    cases.append({"id": "c", "group": "seen", "image": "c.nii.gz"})
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}))
    return folder / "manifest.json"


def test_a_dry_run_reaches_the_critic_by_cases_that_are_learned_from(
    maisi: Maisi, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    given = ("train", "autoencoder", tmp_path / "r.yaml", "--manifest", manifest, "--out", tmp_path / "out")
    done = maisi(*given, "--dry-run")
    assert done.code == 0, done.err
    assert "discriminator" in done.out
    for setting in ("patch=[8, 8, 8]", "decoder_only_after=0"):
        for dry in ((), ("--dry-run",)):
            refused = maisi(*given, *dry, "--set", f"autoencoder.{setting}")
            assert refused.code == 2
            assert "error: " in refused.err
    assert not (tmp_path / "out").exists()
