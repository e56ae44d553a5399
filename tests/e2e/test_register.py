"""`maisi labels register` as a user runs it: a patient gets the labels of another."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap

has_elastix = pytest.mark.skipif(
    importlib.util.find_spec("itk") is None, reason="registration needs elastix, of the extra register (1.6 GB)"
)


def patient(folder: Path, seed: int) -> tuple[Path, LabelMap]:
    rng = np.random.default_rng(seed)
    labels = draw_phantom("chest", Grid.centered((60, 48, 30), (6, 6, 6)), rng)
    write_volume(render_phantom(labels, rng), folder / f"ct{seed}.nii.gz")
    write_labels(labels, folder / f"labels{seed}.nii.gz")
    return folder / f"ct{seed}.nii.gz", labels


def maisi(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own: ITK crashes where pytest has changed how modules are imported."""
    command = [sys.executable, "-m", "maisi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def manifest(folder: Path, seed: int) -> Path:
    case = {"id": "other", "image": f"ct{seed}.nii.gz", "labels_maisi": f"labels{seed}.nii.gz"}
    (folder / "manifest.json").write_text(json.dumps({"cases": [case]}))
    return folder / "manifest.json"


@has_elastix
def test_a_patient_gets_the_labels_of_another(tmp_path: Path) -> None:
    (ct, labels), _ = patient(tmp_path, 1), patient(tmp_path, 2)
    done = maisi("labels", "register", ct, "--atlases", manifest(tmp_path, 2), "--out", tmp_path / "found.nii.gz")
    assert done.returncode == 0, done.stderr
    found = read_labels(tmp_path / "found.nii.gz").array
    for name in ("heart", "left lung upper lobe", "right lung lower lobe"):
        a, b = (x == load_vocabulary().id(name) for x in (labels.array, found))
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6, name


@has_elastix
def test_a_manifest_without_an_atlas_is_refused(tmp_path: Path) -> None:
    ct, _ = patient(tmp_path, 1)
    atlases = manifest(tmp_path, 1)
    done = maisi("labels", "register", ct, "--atlases", atlases, "--leave-out", "other", "--out", tmp_path / "x.nii.gz")
    assert done.returncode == 2
    assert "no atlas; accepted: training cases" in done.stderr
    assert not (tmp_path / "x.nii.gz").exists()
