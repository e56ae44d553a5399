"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maisi.errors import InvalidRequestError, StorageError
from maisi.storage.owners import owner_mark, remove_abandoned

_PREFIX = ".maisi-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def write_atomically(path: str | Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A temporary path (hidden, same suffixes) beside `path` to write to; renamed to `path` when the block ends well.

    The content is flushed to the disk before the rename, so that a kill or a power cut leaves the old file or the new.
    On any error the temporary is removed. Temporaries of processes that were killed are removed first.
    With `num_bytes` the free space is checked before anything is written.

    Raises `StorageError` where the disk is full (free bytes are told, and those needed where they are known), not
    writable or without that folder.
    """
    path = Path(path)
    temporary = path.parent / f"{_PREFIX}{owner_mark()}{''.join(path.suffixes[-2:])}"
    with _storage_errors(path, temporary, num_bytes):
        _check_folder(path, num_bytes)
    try:
        with _storage_errors(path, temporary, num_bytes):
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_directory(path: Path, *, overwrite: bool = False, num_bytes: int = 0) -> Iterator[Path]:
    """A hidden folder beside `path` to write into; renamed to `path` when the block ends well, removed on any error.

    With `overwrite` the old folder is renamed away just before and removed just after: `path` is the old or the new
    one, or for an instant absent, but never a mixture. `num_bytes` is what will be written; the free space is checked
    for it. Raises `InvalidRequestError` where `path` exists and may not be overwritten, `StorageError` where the disk
    is full or not writable. What a killed process left beside is removed first.
    """
    path = path.absolute()
    if path.exists() and not overwrite:
        raise InvalidRequestError(f"{path} exists already; accepted: another place, or --overwrite")
    mine, prefix = owner_mark(), f".{path.name}.partial-"
    partial = path.with_name(f"{prefix}{mine}")
    replaced = path.with_name(f".{path.name}.replaced-{mine}")
    is_there = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, prefix)
        if path.exists():
            remove_abandoned(path.parent, f".{path.name}.replaced-")
        free_bytes = shutil.disk_usage(path.parent).free
        if num_bytes > free_bytes:
            raise StorageError(f"cannot write {path}: {num_bytes} bytes needed, {free_bytes} free")
        partial.mkdir()
        yield partial
        for file in [*(f for f in partial.rglob("*") if f.is_file()), partial]:
            flush(file)
        _take_place(partial, path, replaced)
        is_there = True
        flush(path.parent)
    except OSError as error:
        if error.errno in _FULL | _DENIED:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        if not is_there:
            with suppress(OSError):  # nothing was there, or another has put a new one there
                replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _take_place(partial: Path, path: Path, replaced: Path) -> None:
    """Rename `partial` to `path`, and what is there to `replaced`; of two that do so at once the later one stays."""
    while True:
        with suppress(FileNotFoundError):
            path.rename(replaced)
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            return


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_folder(path: Path, num_bytes: int | None) -> None:
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {path.parent}")
    remove_abandoned(path.parent, _PREFIX)
    if num_bytes is not None and num_bytes > _free_bytes(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _storage_errors(path: Path, temporary: Path, num_bytes: int | None) -> Iterator[None]:
    """Turns "disk full" and "not allowed" into a `StorageError` that says what is missing."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            written = temporary.stat().st_size if temporary.exists() else 0
            free = _free_bytes(path) + written
            room = f"{num_bytes} bytes needed, {free} free" if num_bytes else f"the {free} bytes free are too few"
            raise StorageError(f"cannot write {path}: {error.strerror}; {room}") from error
        if error.errno in _DENIED:
            found = f"cannot write {path}: {error.strerror}"
            raise StorageError(f"{found}; accepted: a folder that can be written to") from error
        raise


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
