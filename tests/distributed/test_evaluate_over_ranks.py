"""Features that ranks share out give the distances that one process gives."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_ranks

from maisi.evaluation.requests import EvaluateImagesRequest
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.runs.carry_out import carry_out
from maisi.runs.tasks.evaluate_images import EVALUATE_IMAGES
from maisi.space.files import write_volume
from maisi.space.grid import Grid
from maisi.splitting.ranks import Ranks


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for k in range(7):
        rng = np.random.default_rng(k)
        volume = render_phantom(draw_phantom("abdomen", Grid.centered((32, 28, 10), (12, 12, 12)), rng), rng)
        place = folder / ("real" if k < 4 else "made")
        place.mkdir(exist_ok=True)
        write_volume(volume, place / f"{k}_ct.nii.gz")
    return folder


def compare(folder: Path, out: Path, ranks: Ranks | None = None) -> None:
    request = EvaluateImagesRequest(real=folder / "real", synthetic=folder / "made", draws=10)
    carry_out(EVALUATE_IMAGES, request, out, ranks=ranks)


def on_rank(rank: int, folder: Path, out: Path) -> None:
    compare(folder, out, Ranks(timeout_s=60))


def numbers(out: Path) -> list[float]:
    found = json.loads((out / "images.json").read_text())
    sides = [found[name] for name in ("synthetic", "matched", "halves")]
    return [value for side in sides for name in ("frechet", "frechet_mean", "kernel") for value in side[name].values()]


@pytest.mark.parametrize("size", [2, 3])  # seven volumes: the last round is not full
def test_ranks_give_the_distances_of_one_process(sets: Path, tmp_path: Path, size: int) -> None:
    threads = torch.get_num_threads()
    compare(sets, tmp_path / "one")
    run_ranks(on_rank, size, sets, tmp_path / "many")
    assert torch.get_num_threads() == threads
    np.testing.assert_allclose(numbers(tmp_path / "many"), numbers(tmp_path / "one"), rtol=1e-6, atol=1e-9)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "many")]
    assert files[0] == files[1]
