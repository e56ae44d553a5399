"""Whose a temporary is, and which may be removed: on a scratch folder that many hosts and containers share."""

import os
import time
from pathlib import Path

import pytest

from maisi.storage import owners
from maisi.storage.owners import is_abandoned, is_owned, owner_mark, remove_abandoned

PREFIX = ".partial-"


def changed(mark: str, **fields: str) -> str:
    names = ("host", "boot", "space", "pid", "start", "word")
    return "~".join((dict(zip(names, mark.split("~"), strict=True)) | fields).values())


def test_own_and_living_marks_are_in_use(tmp_path: Path) -> None:
    assert is_owned(PREFIX + owner_mark(), PREFIX)
    assert not is_abandoned(tmp_path / (PREFIX + owner_mark()), PREFIX)


def test_a_dead_process_has_left_its_temporaries(tmp_path: Path, dead_mark: str) -> None:
    assert is_abandoned(tmp_path / (PREFIX + dead_mark), PREFIX)
    assert is_abandoned(tmp_path / f"{PREFIX}{dead_mark}.nii.gz", PREFIX)


def test_a_process_id_given_to_another_process_is_not_its_owner(tmp_path: Path) -> None:
    reused = changed(owner_mark(), start="12345")
    assert is_abandoned(tmp_path / (PREFIX + reused), PREFIX)


@pytest.mark.parametrize("field", [{"host": "another_host"}, {"boot": "ab" * 16}, {"space": "f0000001"}])
def test_what_another_host_boot_or_container_may_use_is_left_alone(
    tmp_path: Path, dead_mark: str, field: dict[str, str]
) -> None:
    folder = tmp_path / (PREFIX + changed(dead_mark, **field))
    folder.mkdir()
    (folder / "slab").write_bytes(b"x")
    remove_abandoned(tmp_path, PREFIX)
    assert (folder / "slab").exists()


def test_an_earlier_boot_of_this_host_left_what_nobody_touched_for_a_week(tmp_path: Path, dead_mark: str) -> None:
    folder = tmp_path / (PREFIX + changed(dead_mark, boot="ab" * 16))
    folder.mkdir()
    (folder / "slab").write_bytes(b"x")
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(folder / "slab", (week_ago, week_ago))
    os.utime(folder, (week_ago, week_ago))
    remove_abandoned(tmp_path, PREFIX)
    assert not folder.exists()


def test_files_and_folders_of_dead_processes_go_and_foreign_names_stay(tmp_path: Path, dead_mark: str) -> None:
    (tmp_path / (PREFIX + dead_mark)).mkdir()
    (tmp_path / f"{PREFIX}{dead_mark}.nii").write_text("half")
    kept = [PREFIX + owner_mark(), PREFIX + "123-abc", "mine.txt"]
    for name in kept:
        (tmp_path / name).write_text("")
    remove_abandoned(tmp_path, PREFIX)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


def test_a_process_of_another_user_whose_facts_are_hidden_is_alive(
    tmp_path: Path, dead_mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, dead = tmp_path / (PREFIX + owner_mark()), tmp_path / (PREFIX + dead_mark)
    monkeypatch.setattr(owners, "_start_of", lambda pid: None)
    assert not is_abandoned(living, PREFIX)
    assert is_abandoned(dead, PREFIX)
