"""Where the files of a run go: a folder, or a file beside others, that is filled piece by piece, whole pieces only."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from maisi.errors import InvalidRequestError, StorageError
from maisi.storage.owners import is_abandoned, is_owned, owner_mark, remove_abandoned

PARTIAL = ".partial-"
RUN_SETTINGS, RUN_RECORD = "run.yaml", "run.json"
FAILED = "failed"  # the folder in the folder of a run for what came out, but is not good
_OURS = re.compile(
    r"^(.*\.)?run\.(yaml|json)$|^(metrics\.json|(sample_\d{3,}|reconstruction)(_[a-z]+)?\.(nii|nii\.gz|(seg\.)?nrrd|mha|dcm|png|json)"
    r"|sample_\d{3,}_ct)$"
)


def user_path(said: str | Path) -> Path:
    """A path as a user says it, `~` being a home folder; raises `InvalidRequestError` for a user who has none here."""
    try:
        return Path(said).expanduser()
    except RuntimeError as error:
        raise InvalidRequestError(f"{said} begins with the home folder of nobody here; accepted: ./{said}") from error


class OutputFolder:
    """A folder that files enter whole: they are written under `partial` and moved by `publish`."""

    def __init__(self, path: Path, partial: Path, clears: bool, state: tuple[str, ...] = (), command: str = "") -> None:
        self.path, self.partial, self._clears, self._state, self._command = path, partial, clears, state, command
        self.published: list[Path] = []

    def publish(self) -> list[Path]:
        """Move all that was written into the folder, and give where it is now; an earlier run's files go first."""
        staged = sorted(self.partial.iterdir())
        with storage_errors(self.path):
            if self._clears and not self.published:
                _remove_earlier(self.path, self._state, self._command)
            moved = [path for entry in staged for path in _move(entry, self.path / entry.name)]
        self.published += moved
        return moved

    def withdraw(self) -> None:
        """Take back what was published, where it is a single file and there is nothing else in the folder."""
        if len(self.published) == 1 and {*self.path.iterdir()} == {self.partial, *self.published}:
            self.published.pop().unlink()


def entries_of(path: Path, shared: bool = False) -> list[str]:
    """Names in a folder, without what a dead process left there; none where the folder does not exist.

    Raises `InvalidRequestError` for a file, and for a folder that another process is writing to, unless it is shared.
    """
    with storage_errors(path):
        if path.exists() and not path.is_dir():
            raise InvalidRequestError(f"{path} is a file; accepted: a new or empty folder")
        entries = list(path.iterdir()) if path.exists() else []
    living = [entry for entry in entries if not is_abandoned(entry, PARTIAL)]
    own = [entry.name for entry in living if not is_owned(entry.name, PARTIAL)]
    if len(own) < len(living) and not shared:
        raise InvalidRequestError(f"another process is writing to {path}; accepted: another folder, or wait for it")
    return sorted(own)


def staged_in(path: Path, pattern: str) -> list[Path]:
    """Files of this pattern that living processes are about to move into a folder."""
    with storage_errors(path):
        partials = [entry for entry in path.glob(f"{PARTIAL}*") if not is_abandoned(entry, PARTIAL)]
        return sorted(file for partial in partials for file in partial.glob(pattern))


def check_free(path: Path, overwrite: bool = False, shared: bool = False) -> None:
    """Nothing, or the refusal of a place for a run's files that is no folder or holds files."""
    found = entries_of(path, shared)
    if found and not overwrite:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise InvalidRequestError(
            f"{path} is not empty (it holds {shown}); accepted: a new or empty folder, or --overwrite"
        )


@contextmanager
def open_folder(
    path: Path, overwrite: bool = False, state: tuple[str, ...] = (), command: str = ""
) -> Iterator[OutputFolder]:
    """A folder to fill. Ended by an error it keeps what was published; with nothing published it is as it was before.

    A killed process leaves at most a hidden folder `.partial-...`, which the next one removes. With `overwrite`, files
    of an earlier run of `command`, and `state` by these names, give way to the first that are published; files that
    maisi did not write stay.
    """
    entries_of(path)
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    folder = OutputFolder(path, path / f"{PARTIAL}{owner_mark()}", overwrite, state, command)
    try:
        with storage_errors(path):
            folder.partial.mkdir(parents=True)
            remove_abandoned(path, PARTIAL)
        yield folder
    finally:
        shutil.rmtree(folder.partial, ignore_errors=True)
        if not folder.published:
            _remove_empty(created)


@contextmanager
def open_beside(path: Path) -> Iterator[OutputFolder]:
    """A hidden folder in `path` whose files are moved into it: for files that come to lie among others."""
    folder = OutputFolder(path, path / f"{PARTIAL}{owner_mark()}", clears=False)
    try:
        with storage_errors(path):
            folder.partial.mkdir()
            remove_abandoned(path, PARTIAL)
        yield folder
    finally:
        shutil.rmtree(folder.partial, ignore_errors=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what the system raises on a place that cannot be written to into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write to {path}: {error.strerror or error}") from error


def _move(source: Path, target: Path) -> list[Path]:
    """Move a file or a folder, into a folder that is there already, and give where all that was moved is now."""
    if source == target or not (source.is_dir() and target.is_dir()):
        os.replace(source, target)
        return [target]
    moved = [path for entry in sorted(source.iterdir()) for path in _move(entry, target / entry.name)]
    source.rmdir()
    return moved


def _remove_earlier(path: Path, state: tuple[str, ...], command: str) -> None:
    for name in outputs_of(path / RUN_RECORD, command) if command and not state else ():
        (path / name).unlink(missing_ok=True)
    for folder in (path, path / FAILED):
        for name in [entry.name for entry in folder.iterdir() if _OURS.match(entry.name)] if folder.is_dir() else ():
            _remove(folder / name)
    for name in state:
        _remove(path / name)
    _remove_empty([path / FAILED])


def outputs_of(record: Path, command: str) -> list[str]:
    """The files in a folder that its record says a run of a command has left there; none where it is of another."""
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        outputs = told["outputs"] if told["command"] == command else {}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = [PurePosixPath(str(name)) for name in outputs] if isinstance(outputs, dict) else []
    return [str(name) for name in names if not name.is_absolute() and ".." not in name.parts]


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
