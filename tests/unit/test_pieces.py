"""Work case by case: what is taken from an earlier part of a run, and what is made anew."""

import os
from pathlib import Path

import pytest

from maisi.errors import RunError
from maisi.runs.carry_out import carry_out
from maisi.runs.pieces import case_file, file_state, piece
from maisi.runs.task import Checked, Run, Task
from maisi.shapes import Frozen


class Words(Frozen):
    """The words of a file."""

    words: str


class Reading(Frozen):
    """Files to read, case by case; the run ends at the first that says so."""

    folder: Path


def read_all(checked: Checked[Reading], run: Run) -> None:
    for path in sorted(checked.request.folder.iterdir()):
        found = piece(run, case_file(path.name), Words, (path,), lambda: Words(words=read(path)))  # noqa: B023
        if found.words == "stop":
            raise RunError("stopped")


READ: list[str] = []


def read(path: Path) -> str:
    READ.append(path.name)
    return path.read_text()


TASK = Task("read", Reading, Checked, read_all)


def test_a_file_that_took_the_place_of_another_is_read_again_and_others_are_not(tmp_path: Path) -> None:
    folder, out = tmp_path / "cases", tmp_path / "out"
    folder.mkdir()
    for name, words in (("a", "one"), ("b", "two"), ("ba", "kept"), ("c", "stop")):
        (folder / name).write_text(words)
    READ.clear()
    with pytest.raises(RunError, match="stopped"):
        carry_out(TASK, Reading(folder=folder), out)
    assert READ == ["a", "b", "ba", "c"]
    state = (folder / "a").stat()
    (folder / "a").write_text("eno")
    os.utime(folder / "a", ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # of the same size, a moment later
    (folder / "c").write_text("three")
    (out / "case_b.json").write_text('{"words": "two"}')  # as a version before wrote it
    READ.clear()
    carry_out(TASK, Reading(folder=folder), out)
    assert READ == ["a", "b", "c"]
    assert '"eno"' in (out / "case_a.json").read_text()


def test_the_state_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"one")
    before, state = file_state(tmp_path / "series"), (tmp_path / "series" / "1.dcm").stat()
    (tmp_path / "series" / "1.dcm").write_bytes(b"eno")
    os.utime(tmp_path / "series" / "1.dcm", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert file_state(tmp_path / "series") != before
    assert file_state(tmp_path / "none") == "not there"
