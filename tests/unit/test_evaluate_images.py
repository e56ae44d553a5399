"""Features that an unfinished comparison of volumes left, and of what they are."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from maisi.cli import main
from maisi.errors import InvalidRequestError
from maisi.evaluation.images import _moved_by_factor
from maisi.evaluation.requests import EvaluateImagesRequest
from maisi.runs.carry_out import carry_out
from maisi.runs.tasks.evaluate_images import EVALUATE_IMAGES
from maisi.space.files import write_volume
from maisi.space.grid import Grid
from maisi.space.volume import Volume

CONSTANT = "def embed(images):\n    return images.mean((2, 3)) * 0\n"
MEANS = "def embed(images):\n    return images.mean((2, 3))\n"


def noise(path: Path, seed: int) -> Path:
    hu = np.random.default_rng(seed).normal(40, 20 * (1 + seed), (8, 8, 8)).astype(np.float32)
    path.parent.mkdir(exist_ok=True)
    write_volume(Volume(hu, Grid.centered((8, 8, 8), (8, 8, 8))), path)
    return path


@pytest.fixture
def request_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateImagesRequest:
    """Three volumes a set, and a module of features that are constant."""
    for k in range(6):
        noise(tmp_path / ("real" if k < 3 else "made") / f"{k}_ct.nii", k)
    (tmp_path / "embedding.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "embedding", raising=False)
    return EvaluateImagesRequest(
        real=tmp_path / "real", synthetic=tmp_path / "made", features="embedding:embed", draws=10
    )


def features_in(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            found[path.name] = file["axial"]
    return found


def test_features_are_made_anew_where_volume_or_code_is_another(
    request_of_both: EvaluateImagesRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "out", tmp_path / "made" / "3_ct.nii"
    with pytest.raises(InvalidRequestError, match="all 3 features are the same for every real plane"):
        carry_out(EVALUATE_IMAGES, request_of_both, out)
    (tmp_path / "embedding.py").write_text(MEANS)
    monkeypatch.delitem(sys.modules, "embedding")
    kept = made.read_bytes()
    made.write_bytes(b"no image")
    with pytest.raises(InvalidRequestError, match=r"3_ct\.nii"):
        carry_out(EVALUATE_IMAGES, request_of_both, out)
    made.write_bytes(kept)
    other = noise(tmp_path / "real" / "0_ct.nii", 9)
    os.utime(other, ns=(0, 0))
    carry_out(EVALUATE_IMAGES, request_of_both, out)
    carry_out(EVALUATE_IMAGES, request_of_both, tmp_path / "fresh")
    found, fresh = features_in(out), features_in(tmp_path / "fresh")
    assert found.keys() == fresh.keys()
    for name, features in found.items():
        np.testing.assert_array_equal(features, fresh[name], err_msg=name)


def test_few_resamplings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "images", "a", "b", "--out", "c", "--draws", "9"]) == 2
    assert "draws" in capsys.readouterr().err


def test_resamplings_that_are_mostly_equal_move_no_interval_to_infinity() -> None:
    found = _moved_by_factor(1e-9, np.array([0.0, 0.0, 0.0, 0.25]))
    assert (found.value, found.low) == (1e-9, pytest.approx(0, abs=1e-8))
    assert 0.1 < found.high <= 0.26
    assert _moved_by_factor(3.0, np.array([1.0, 2.0, 4.0])).high == pytest.approx(6, rel=0.06)
