import mmap
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from maisi.errors import InvalidRequestError, StorageError
from maisi.runs.meter import StageMeter
from maisi.runs.record import (
    BundleIdentity,
    RunRecord,
    changed_circumstances,
    differences,
    input_sums,
    machine,
    read_record,
)
from maisi.splitting.cpu import compiled
from maisi.storage.folders import check_free, open_folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def record(**changes: object) -> RunRecord:
    facts: dict[str, object] = {
        "command": "generate",
        "maisi": "0.1.0",
        "started": datetime(2026, 1, 1, tzinfo=UTC),
        "seed": 0,
        "threads": 2,
        "bundle": BundleIdentity(name="b", version="1", sha256="1"),
        "versions": {"torch": "2.13"},
        "platform": {"system": "Linux"},
        "inputs": {},
        "outputs": {"a": "1", "b": "2"},
        "stages": {},
        "seconds": 1.0,
        "peak_bytes": 1,
    }
    return RunRecord.model_validate({**facts, **changes})


def test_files_enter_the_folder_when_they_are_published(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with open_folder(out) as run:
        (run.partial / "one.txt").write_text("1")
        assert names(out) == [run.partial.name]
        assert run.publish() == [out / "one.txt"]
        (run.partial / "two.txt").write_text("2")
    assert names(out) == ["one.txt"]  # what was not published is not there


def test_an_error_before_the_first_file_leaves_no_folder(tmp_path: Path) -> None:
    def broken() -> None:
        with open_folder(tmp_path / "a" / "b" / "out") as run:
            (run.partial / "one.txt").write_text("1")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert names(tmp_path) == []


def test_an_error_later_keeps_what_was_published(tmp_path: Path) -> None:
    def broken() -> None:
        with open_folder(tmp_path / "out") as run:
            (run.partial / "one.txt").write_text("1")
            run.publish()
            (run.partial / "two.txt").write_text("2")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert names(tmp_path / "out") == ["one.txt"]


def test_an_empty_folder_of_the_user_stays_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyError), open_folder(tmp_path / "out"):
        raise KeyError
    assert (tmp_path / "out").is_dir()


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path, dead_mark: str) -> None:
    abandoned = tmp_path / f".partial-{dead_mark}"
    abandoned.mkdir()
    (abandoned / "half.nii.gz").write_text("half")
    check_free(tmp_path)
    with open_folder(tmp_path) as run:
        assert not abandoned.exists()
        assert run.partial.exists()
        with pytest.raises(InvalidRequestError, match="another process is writing"):
            check_free(tmp_path)


def test_overwriting_removes_files_of_runs_only_and_only_when_new_ones_come(tmp_path: Path) -> None:
    mine = ["notes.txt", "sample.nii.gz", "sample_1_ct.nii.gz", "ct.nii.gz"]
    for name in [*mine, "run.json", "run.yaml", "sample_000_ct.nii.gz", "sample_1234_preview.png", "sample_001_ct.nii"]:
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyError), open_folder(tmp_path, overwrite=True):
        raise KeyError
    assert len(names(tmp_path)) == len(mine) + 5
    with open_folder(tmp_path, overwrite=True) as run:
        (run.partial / "sample_000_ct.nii.gz").write_text("new")
        run.publish()
    assert names(tmp_path) == sorted([*mine, "sample_000_ct.nii.gz"])
    assert (tmp_path / "sample_000_ct.nii.gz").read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_to_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write to"), open_folder(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write to"), open_folder(tmp_path / ("x" * 300)):
        pass


def test_outputs_that_differ_or_are_missing_are_named() -> None:
    assert differences(record(), record()) == []
    assert differences(record(), record(outputs={"a": "1", "b": "3", "c": "4"})) == ["b", "c"]
    assert differences(record(), record(outputs={"a": "1"})) == ["b"]


def test_circumstances_that_changed_are_told() -> None:
    assert changed_circumstances(record(), record(seconds=9.0)) == []
    again = record(versions={"torch": "2.14"}, threads=4)
    assert changed_circumstances(record(), again) == ["torch was 2.13, is 2.14", "threads was 2, is 4"]


@pytest.mark.parametrize(("instruction_set", "told"), [("avx2", "compiled for avx2"), ("", "torch")])
def test_what_convolves_is_among_the_circumstances(
    monkeypatch: pytest.MonkeyPatch, instruction_set: str, told: str
) -> None:
    monkeypatch.setattr(compiled, "instruction_set", lambda: instruction_set)
    assert machine()["convolutions"] == told


def test_a_record_written_and_read_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(record().model_dump_json())
    assert read_record(tmp_path / "run.json") == record()


def test_sums_of_inputs_follow_the_content_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "a").write_text("1")
    first = input_sums([tmp_path / "dicom"])
    assert list(first) == [str(tmp_path / "dicom")]
    (tmp_path / "dicom" / "a").write_text("2")
    assert input_sums([tmp_path / "dicom"]) != first


def test_stages_add_up_and_have_peaks_of_their_own() -> None:
    meter = StageMeter()
    time.sleep(0.02)
    meter.end("quiet")
    block = mmap.mmap(-1, 100_000_000)  # fresh pages, where np.ones may get what an earlier test left in the heap
    np.frombuffer(block, np.uint8)[:] = 1
    meter.end("large")
    block.close()
    meter.end("release")
    time.sleep(0.02)
    meter.end("quiet")
    stages = meter.stages
    assert list(stages) == ["quiet", "large", "release"]
    assert stages["quiet"].seconds >= 0.04
    assert stages["large"].peak_bytes >= stages["quiet"].peak_bytes
    if sys.platform == "linux":
        assert 80_000_000 < stages["large"].peak_bytes - stages["quiet"].peak_bytes < 130_000_000
