"""`maisi evaluate autoencoder` as a user runs it."""

import json
from pathlib import Path

import pytest
from command_line import Maisi, Patient, files_in

from maisi.evaluation.fidelity import box_blur, fidelity
from maisi.space.files import read_volume


def manifest(patient: Patient, folder: Path, *more: dict) -> Path:
    cases = [{"id": k, "group": k, "image": str(patient.ct)} for k in ("a", "b")]
    path = folder / "manifest.json"
    path.write_text(json.dumps({"cases": [*cases, *more]}))
    return path


def test_figures_stand_by_group_and_tissue_beside_the_blur_and_a_broken_case_is_left_out(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    source = manifest(patient, tmp_path, {"id": "broken", "image": "broken.nii.gz"})
    done = maisi("evaluate", "autoencoder", source, "-b", tiny_bundle, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert [group["name"] for group in done.json["groups"]] == ["all", "a", "b"]
    whole, ct = done.json["groups"][0], read_volume(patient.ct)
    blurred = fidelity(box_blur(ct), ct)
    assert whole["blur"]["psnr_db"]["mean"] == pytest.approx(blurred.psnr_db)
    assert whole["num_cases"] == 2
    assert {"body mae_hu", "air mae_hu", "fat bias_hu"} <= set(whole["reconstruction"])
    assert whole["gain_db"]["mean"] == pytest.approx(
        whole["reconstruction"]["psnr_db"]["mean"] - whole["blur"]["psnr_db"]["mean"]
    )
    (failed,) = done.json["failures"]
    assert failed["id"] == "broken"
    assert "fewer than 5 patients" in done.json["notes"][0]
    assert {"autoencoder.json", "autoencoder.html", "case_a.json"} <= set(files_in(tmp_path / "out"))


def test_a_folder_without_images_is_refused(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = maisi("evaluate", "autoencoder", tmp_path / "empty", "-b", tiny_bundle, "--out", tmp_path / "out")
    assert done.code == 2
    assert "has 0 images" in done.err
    assert not (tmp_path / "out").exists()
