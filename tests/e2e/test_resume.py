"""A run that was killed goes on when it is asked for again, and its files are those of one that was not."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import Maisi, Patient, files_in

from maisi.runs.tasks import HOMES, task_named
from maisi.storage.sums import sha256

SMALL = ("--size", 16, 16, 16, "--spacing", 16, 16, 16, "--steps", 1, "--count", 3, "--precision", "float32")


def sums(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in files_in(folder) if name != "run.json"}


@pytest.fixture
def whole(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> Path:
    """The folder of a run of three samples that nobody disturbed."""
    assert maisi("generate", "-b", tiny_bundle, *SMALL, "-o", tmp_path / "whole").code == 0
    return tmp_path / "whole"


def interrupted(whole: Path, to: Path, *missing: str) -> Path:
    """The folder as it is after a kill before the files of those names were written."""
    to.mkdir()
    for name in files_in(whole):
        if name != "run.json" and not name.startswith(missing):
            (to / name).write_bytes((whole / name).read_bytes())
    return to


@pytest.mark.parametrize(
    "missing", [("sample_002",), ("sample_001", "sample_002"), ("sample_001_labels", "sample_002")]
)
def test_finished_samples_stay_and_the_rest_follow(
    maisi: Maisi, tiny_bundle: Path, whole: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    out = interrupted(whole, tmp_path / "out", *missing)
    first = (out / "sample_000_ct.nii.gz").stat().st_mtime_ns
    answer = maisi("generate", "-b", tiny_bundle, *SMALL, "-o", out)
    assert answer.code == 0, answer.err
    assert sums(out) == sums(whole)
    assert (out / "sample_000_ct.nii.gz").stat().st_mtime_ns == first
    assert "sample_000_ct.nii.gz" not in answer.out
    record = json.loads((out / "run.json").read_text())
    assert record["outputs"] == sums(whole)


def test_another_request_does_not_go_on_with_it(maisi: Maisi, tiny_bundle: Path, whole: Path, tmp_path: Path) -> None:
    out = interrupted(whole, tmp_path / "out", "sample_002")
    before = sums(out)
    answer = maisi("generate", "-b", tiny_bundle, *SMALL, "--seed", 5, "-o", out)
    assert answer.code == 2
    assert "unfinished run of other settings (seed)" in answer.err
    assert sums(out) == before


def test_a_finished_run_is_not_gone_on_with(maisi: Maisi, tiny_bundle: Path, whole: Path) -> None:
    answer = maisi("generate", "-b", tiny_bundle, *SMALL, "-o", whole)
    assert answer.code == 2
    assert "is not empty" in answer.err


def test_overwriting_begins_anew(maisi: Maisi, tiny_bundle: Path, whole: Path, tmp_path: Path) -> None:
    out = interrupted(whole, tmp_path / "out", "sample_002")
    answer = maisi("generate", "-b", tiny_bundle, *SMALL, "-o", out, "--overwrite")
    assert answer.code == 0
    assert "sample_000_ct.nii.gz" in answer.out
    assert sums(out) == sums(whole)


def test_a_folder_of_label_maps_gives_samples_named_after_them(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("b", "a"):
        (maps / f"{name}.nii.gz").write_bytes(patient.labels.read_bytes())
    ask = ("generate", "-b", tiny_bundle, "--steps", 1)
    assert maisi(*ask, "--labels", maps, "-o", tmp_path / "many").code == 0
    kinds = ("ct.nii.gz", "labels.nii.gz", "preview.png", "quality.json")
    assert files_in(tmp_path / "many") == sorted(
        [*(f"{name}_{kind}" for name in "ab" for kind in kinds), "run.json", "run.yaml"]
    )
    assert maisi(*ask, "--labels", maps / "a.nii.gz", "-o", tmp_path / "one").code == 0
    one, many = tmp_path / "one" / "sample_000_ct.nii.gz", tmp_path / "many" / "a_ct.nii.gz"
    assert one.read_bytes() == many.read_bytes()
    record = json.loads((tmp_path / "many" / "run.json").read_text())
    assert list(record["inputs"]) == [str(maps)]
    assert len(record["files"]) == 2


def test_images_without_labels_have_no_label_file(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("generate", "-b", tiny_bundle, "--size", 16, 16, 16, "--spacing", 16, 16, 16, "--steps", 1)
    assert maisi(*ask, "--unlabelled", "-o", tmp_path / "out").code == 0
    kinds = ("ct.nii.gz", "preview.png", "quality.json")
    assert files_in(tmp_path / "out") == ["run.json", "run.yaml", *(f"sample_000_{kind}" for kind in kinds)]


def test_what_lies_in_the_scratch_folder_is_no_input(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ask = ("generate", "-b", tiny_bundle, *SMALL, "--memory", "2GB", "--scratch", scratch)
    assert maisi(*ask, "-o", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["inputs"] == {}
    (scratch / "foreign.txt").write_text("of another program")
    answer = maisi("reproduce", tmp_path / "out")
    assert answer.code == 0, answer.err


def test_encoding_and_decoding_leave_records_and_are_reproduced(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent, ct = tmp_path / "l.safetensors", tmp_path / "again.nii.gz"
    assert maisi("encode", patient.ct, "-b", tiny_bundle, "-o", latent).code == 0
    assert maisi("decode", latent, "-b", tiny_bundle, "-o", ct).code == 0
    records = [f"{stem}.run.{kind}" for stem in ("again", "l") for kind in ("json", "yaml")]
    assert files_in(tmp_path) == sorted([*records, latent.name, ct.name])
    for stem in ("l", "again"):
        answer = maisi("reproduce", tmp_path / f"{stem}.run.yaml", "--json")
        assert answer.code == 0, answer.err
        assert answer.json["identical"]
    inputs = json.loads((tmp_path / "l.run.json").read_text())["inputs"]
    assert inputs == {str(patient.ct): sha256(patient.ct)}


def test_records_of_a_file_stay_where_one_of_another_ending_comes_beside_it(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    latent, ct = tmp_path / "a.safetensors", tmp_path / "a.nii.gz"
    assert maisi("encode", patient.ct, "-b", tiny_bundle, "-o", latent).code == 0
    before = (tmp_path / "a.run.json").read_bytes()
    for more in ((), ("--overwrite",)):
        assert maisi("decode", latent, "-b", tiny_bundle, "-o", ct, *more).code == 0
    assert (tmp_path / "a.run.json").read_bytes() == before
    assert json.loads((tmp_path / "a.nii.gz.run.json").read_text())["command"] == "decode"


@pytest.mark.parametrize("name", HOMES)
def test_a_task_can_be_sent_to_another_process(name: str) -> None:
    task = task_named(name)
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301 (made here)


def test_a_request_can_be_made_and_sent_without_torch() -> None:
    code = (
        "import pickle, sys\n"
        "from maisi.pipelines.requests import DecodeRequest, EncodeRequest, GenerateRequest\n"
        "from maisi.runs.requests import ConvertRequest\n"
        "pickle.dumps([GenerateRequest(), EncodeRequest(source='a'), DecodeRequest(source='a')])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_yaml_says_all_that_was_left_open(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    assert maisi("generate", "-b", tiny_bundle, *SMALL, "-o", tmp_path / "out").code == 0
    settings = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert settings["compute"] == {
        "device": "cpu",
        "precision": "float32",
        "memory": None,
        "scratch": None,
        "host_memory": None,
        "threads": settings["compute"]["threads"],
        "ranks": 1,
    }
    assert settings["controlnet_scale"] == 1.0
