"""`maisi info` on files: what was found, and which commands would take them."""

from pathlib import Path

import nibabel as nib
import numpy as np
from command_line import Maisi, Patient


def test_info_tells_what_was_found_and_which_commands_would_take_a_file(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    image = nib.load(patient.ct)
    padded = np.asarray(image.dataobj).copy()
    padded[:2] = -3024
    nib.save(nib.Nifti1Image(padded, image.affine), tmp_path / "ct.nii.gz")
    about = maisi("info", tmp_path / "ct.nii.gz", "--json").json
    assert about["kind"] == "volume"
    assert [f["topic"] for f in about["found"]] == ["padding"]
    taken = {name: use["taken"] for name, use in about["taken_by"].items()}
    assert taken == {"encode": True, "reconstruct": True, "prepare": True, "generate --labels": False}
    assert "an image, not a label map" in about["taken_by"]["generate --labels"]["why"]
    shown = maisi("info", tmp_path / "ct.nii.gz")
    assert shown.code == 0
    assert "not scanned, most at -3024 HU; taken as air" in shown.out
    assert "prepare: would take it" in shown.out


def test_info_says_of_a_label_map_that_it_is_no_image(maisi: Maisi, patient: Patient) -> None:
    uses = maisi("info", patient.labels, "--json").json["taken_by"]
    assert uses["generate --labels"] == {"taken": True, "why": ""}
    assert "a label map: whole numbers" in uses["encode"]["why"]


def test_info_of_a_file_that_no_command_takes_tells_its_header_and_the_reasons(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    image = nib.load(patient.ct)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.float32(1024.5), image.affine), tmp_path / "raw.nii.gz")
    answer = maisi("info", tmp_path / "raw.nii.gz", "--json")
    assert answer.code == 2
    assert answer.json["kind"] == "refused"
    assert answer.json["stored_size"] == list(image.shape)
    assert answer.json["type"] == "float32"
    assert "HU + 1024" in answer.json["taken_by"]["encode"]["why"]
    assert "HU + 1024" in answer.err
    assert "--hu-offset -1024" in answer.err
    assert "would not: " in maisi("info", tmp_path / "raw.nii.gz").out


def test_info_warns_on_stderr_and_answers_on_stdout(maisi: Maisi, patient: Patient, tmp_path: Path) -> None:
    image = nib.load(patient.ct)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None), tmp_path / "nowhere.nii.gz")
    content = nib.load(tmp_path / "nowhere.nii.gz")
    content.header["sform_code"] = content.header["qform_code"] = 0
    nib.Nifti1Image(np.asarray(content.dataobj), None, content.header).to_filename(tmp_path / "nowhere.nii.gz")
    answer = maisi("info", tmp_path / "nowhere.nii.gz", "--json")
    assert answer.json["kind"] == "volume"
    assert "warning: " in answer.err
    assert "neither sform nor qform has a code" in answer.err


def test_info_says_of_labels_that_generate_could_not_follow_why_not(
    maisi: Maisi, patient: Patient, tmp_path: Path
) -> None:
    image = nib.load(patient.labels)
    nothing = np.zeros(image.shape, np.uint8)
    for name, ids, why in (("nothing", nothing, "no label in it"), ("body", nothing + np.uint8(200), "--region")):
        ids[0, 0, 0] = 0
        nib.save(nib.Nifti1Image(ids, image.affine), tmp_path / f"{name}.nii.gz")
        about = maisi("info", tmp_path / f"{name}.nii.gz", "--json").json
        assert about["kind"] == "labels"
        assert not about["taken_by"]["generate --labels"]["taken"]
        assert why in about["taken_by"]["generate --labels"]["why"]
