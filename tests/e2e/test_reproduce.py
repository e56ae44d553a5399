"""`maisi reproduce`: the same files again, or what differs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import Maisi, Patient, files_in


@pytest.fixture
def run(maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path) -> Path:
    """A run on copies of bundle and labels, which a test may then change."""
    bundle, labels = tmp_path / "bundle", tmp_path / "labels.nii.gz"
    shutil.copytree(tiny_bundle, bundle)
    shutil.copy(patient.labels, labels)
    answer = maisi("generate", "-b", bundle, "--labels", labels, "--steps", 2, "--count", 2, "-o", tmp_path / "run")
    assert answer.code == 0, answer.err
    return tmp_path / "run"


def test_a_run_repeated_gives_the_same_bits(maisi: Maisi, run: Path, tmp_path: Path) -> None:
    answer = maisi("reproduce", run / "run.yaml", "--out", tmp_path / "again", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["identical"]
    assert answer.json["changed"] == []
    assert files_in(tmp_path / "again") == files_in(run)
    for name in files_in(run):
        if name != "run.json":
            assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_another_process_gives_the_same_bits_with_the_packaged_bundle(packaged: str, tmp_path: Path) -> None:
    """Its networks are wide enough for all kernels, which small ones are not."""
    command = [sys.executable, "-m", "maisi"]
    size = ["--size", "32", "48", "32", "--spacing", "5", "5", "5", "--steps", "2", "--threads", "2"]
    made = [*command, "generate", "--bundle", packaged, *size, "--out", str(tmp_path / "run")]
    subprocess.run(made, check=True, capture_output=True)
    again = subprocess.run([*command, "reproduce", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr


def test_without_out_nothing_is_left_behind(maisi: Maisi, run: Path, tmp_path: Path) -> None:
    before = files_in(tmp_path)
    answer = maisi("reproduce", run)
    assert answer.code == 0
    assert "same  sample_001_ct.nii.gz" in " ".join(answer.out.splitlines())
    assert files_in(tmp_path) == before


def test_files_that_differ_are_named_and_the_exit_code_is_1(maisi: Maisi, run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["outputs"]["sample_001_ct.nii.gz"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    (run / "run.json").write_text(json.dumps(record))

    answer = maisi("reproduce", run)
    assert answer.code == 1
    assert "error: 1 of 9 files differ: sample_001_ct.nii.gz" in answer.err
    assert "torch was 1.0" in answer.err
    assert "differs  sample_001_ct.nii.gz" in answer.out


def test_other_settings_give_other_files(maisi: Maisi, run: Path) -> None:
    settings = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump({**settings, "seed": 9}))
    answer = maisi("reproduce", run, "--json")
    assert answer.code == 1
    assert {"sample_000_ct.nii.gz", "run.yaml"} <= set(answer.json["different"])


def test_a_reconstruction_can_be_reproduced(maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path) -> None:
    maisi("reconstruct", patient.ct, "-b", tiny_bundle, "-o", tmp_path / "run")
    answer = maisi("reproduce", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    assert len(answer.json["outputs"]) == 4


def test_a_run_on_another_input_or_bundle_is_refused(maisi: Maisi, run: Path, patient: Patient, tmp_path: Path) -> None:
    shutil.copy(patient.ct, tmp_path / "labels.nii.gz")
    assert maisi("reproduce", run).code == 2
    (tmp_path / "bundle" / "MODEL_CARD.md").write_text("altered")
    answer = maisi("reproduce", run)
    assert answer.code == 2
    assert "MODEL_CARD.md was altered" in answer.err


def test_labels_of_other_content_are_refused_by_their_sum(maisi: Maisi, run: Path, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "labels.nii.gz").read_bytes())
    content[9] ^= 1  # the gzip header's byte for the operating system: same labels, another file
    (tmp_path / "labels.nii.gz").write_bytes(bytes(content))
    answer = maisi("reproduce", run)
    assert answer.code == 2
    assert "labels.nii.gz is not the file of the run" in answer.err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda run: (run / "run.json").unlink(), "no run.json in"),
        (lambda run: (run / "run.json").write_text("{"), "is no record of a maisi run"),
        (lambda run: (run / "run.yaml").unlink(), "no settings file"),
        (lambda run: (run / "run.yaml").write_text("steps: 3"), "does not say which command"),
        (lambda run: (run / "run.yaml").write_text("command: dance"), "leaves no run that can be repeated"),
        (lambda run: (run / "run.yaml").write_text("command: generate\nstep: 3"), "did you mean 'steps'?"),
    ],
)
def test_a_damaged_run_is_refused(maisi: Maisi, run: Path, change: object, complaint: str) -> None:
    change(run)  # type: ignore[operator]
    answer = maisi("reproduce", run)
    assert answer.code == 2
    assert complaint in answer.err
