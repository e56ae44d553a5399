"""`maisi inpaint`: from a CT to files."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import Maisi, Patient, files_in
from scipy import ndimage

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.origin import read_provenance

LESION = ("--tumor", "liver tumour", "--random", 1, "--diameter", 60, "--steps", 1)
MADE = ["ct_ct.nii.gz", "ct_labels.nii.gz", "ct_mask.nii.gz", "ct_preview.png", "ct_quality.json"]
TUMOUR = load_vocabulary().id("hepatic tumor")


def test_a_tumour_is_put_into_the_file_itself(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi("inpaint", patient.ct, "-b", tiny_bundle, "--labels", patient.labels, *LESION, "-o", out)

    assert answer.code == 0, answer.err
    assert files_in(out) == [*MADE, "run.json", "run.yaml"]
    old, new = (gzip.decompress(path.read_bytes()) for path in (patient.ct, out / MADE[0]))
    start = nib.load(out / MADE[0]).dataobj.offset  # behind what says what made it
    assert (old[:108], old[112:348]) == (new[:108], new[112:348])
    before, after = np.frombuffer(old[352:], np.int16), np.frombuffer(new[start:], np.int16)
    assert read_provenance(out / MADE[0]).command == "inpaint"
    labels, mask = (np.asarray(nib.load(out / name).dataobj) for name in MADE[1:3])
    np.testing.assert_array_equal(labels == TUMOUR, mask > 0)
    near = ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=2).ravel(order="F")
    assert (before != after).any()
    np.testing.assert_array_equal(before[~near], after[~near])
    quality, record = (json.loads((out / name).read_text()) for name in ("ct_quality.json", "run.json"))
    assert quality["lesions"][0]["contrast"]["made_by"] == "reference"
    assert record["inputs"].keys() == {str(patient.ct), str(patient.labels)}
    assert "the table's" in record["warnings"][0]


def test_a_run_repeats_bit_for_bit(maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path) -> None:
    maisi("inpaint", patient.ct, "-b", tiny_bundle, "--labels", patient.labels, *LESION, "-o", tmp_path / "one")
    answer = maisi("reproduce", tmp_path / "one" / "run.yaml", "--out", tmp_path / "two")
    assert answer.code == 0, answer.err
    assert (tmp_path / "one" / MADE[0]).read_bytes() == (tmp_path / "two" / MADE[0]).read_bytes()


def test_cases_of_a_manifest_are_done_but_for_those_that_cannot(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    cases = [
        {"id": "p1/whole", "image": str(patient.ct), "labels_maisi": str(patient.labels)},
        {"id": "unlabelled", "image": str(patient.ct)},
    ]
    manifest, out = tmp_path / "cases.jsonl", tmp_path / "out"
    manifest.write_text("".join(f"{json.dumps(case)}\n" for case in cases))
    answer = maisi("inpaint", "--manifest", manifest, "-b", tiny_bundle, *LESION, "-o", out)

    assert answer.code == 1, answer.err
    names = [name.replace("ct_", "p1__whole_", 1) for name in MADE]
    assert files_in(out) == sorted([*names, "manifest.jsonl", "run.json", "run.yaml"])
    assert "unlabelled: --random draws places in the liver" in answer.err
    assert "accepted: a case with labels of the liver\n" in answer.err
    assert answer.err.splitlines()[-1] == "error: 1 of the cases could not be done: unlabelled"
    assert json.loads((out / "run.json").read_text())["failed"] == ["unlabelled"]
    (case,) = (json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines())
    assert case["labels_maisi"] == "p1__whole_labels.nii.gz"
    assert "put in by maisi inpaint" in case["notes"]

    again = maisi("inpaint", "--manifest", out / "manifest.jsonl", "-b", tiny_bundle, *LESION, "-o", out, "--overwrite")
    assert (again.code, "of the run in" in again.err) == (2, True)
    assert (out / names[0]).is_file()
    shown = maisi("labels", "prepare", out / names[1], "--out", out, "--overwrite")
    assert (shown.code, "is read; accepted: another place" in shown.err) == (2, True), shown.err
    healed = maisi("inpaint", "--manifest", manifest, "-b", tiny_bundle, "--remove", "-o", out, "--overwrite")
    assert (healed.code, "no case could be inpainted" in healed.err) == (2, True)  # what was made before is not listed
    assert "--mask" not in healed.err
    assert (out / names[0]).is_file()  # it stays until there is another in its place
    manifest.write_text(json.dumps(cases[0] | {"id": "other"}) + "\n")
    other = maisi("inpaint", "--manifest", manifest, "-b", tiny_bundle, *LESION, "-o", out, "--overwrite")
    assert other.code == 0, other.err
    assert not (out / names[0]).exists()  # nothing is left for a later run to take over
    shifted = maisi("inpaint", "--manifest", manifest, "-b", tiny_bundle, *LESION, "--hu-offset", -1024, "-o", out)
    assert (shifted.code, "of a manifest are read as they are" in shifted.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tumor", "hepatic tumr", "--random", 1), "did you mean"),
        (("--tumor", "hepatic tumor", "--at", 0, 0, 9000, "--diameter", 30), "outside the volume"),
        (("--tumor", "hepatic tumor"), "one place"),
        (("--remove",), "needs to know the lesion"),
        (("--tumor", "hepatic tumor", "--random", 1, "--memory", "1MB"), "accepted: --memory"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path, options: tuple, said: str
) -> None:
    labels = () if "--remove" in options else ("--labels", patient.labels)
    answer = maisi("inpaint", patient.ct, "-b", tiny_bundle, *labels, *options, "-o", tmp_path / "out")
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
