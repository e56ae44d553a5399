"""Files that appear whole or not at all."""

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from maisi.errors import StorageError

_PREFIX = ".maisi-"
_MARK = re.compile(r"^(?P<host>[^~]*)~(?P<pid>\d+)~[0-9a-f]{8}(\.|$)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def write_atomically(path: str | Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A temporary path (hidden, same suffixes) beside `path` to write to; renamed to `path` when the block ends well.

    The content is flushed to the disk before the rename, so that a kill or a power cut leaves the old file or the new.
    On any error the temporary is removed. Temporaries of processes of this machine that were killed are removed first.
    With `num_bytes` the free space is checked before anything is written.

    Raises `StorageError` where the disk is full (needed and free bytes are told), not writable or without that folder.
    """
    path = Path(path)
    temporary = path.parent / f"{_PREFIX}{process_mark()}{''.join(path.suffixes[-2:])}"
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


def process_mark() -> str:
    """An ending for the name of a temporary: this machine, this process and a random word."""
    return f"{_host()}~{os.getpid()}~{secrets.token_hex(4)}"


def is_abandoned(name: str, prefix: str) -> bool:
    """Whether this is `prefix` and the mark of a process of this machine that is gone."""
    match = _MARK.match(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return bool(match and match["host"] == _host() and not psutil.pid_exists(int(match["pid"])))


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _remove_stale(folder: Path) -> None:
    for entry in folder.glob(_PREFIX + "*"):
        if is_abandoned(entry.name, _PREFIX):
            entry.unlink(missing_ok=True)


def _check_folder(path: Path, num_bytes: int | None) -> None:
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {path.parent}")
    _remove_stale(path.parent)
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
            needed = f"{num_bytes} bytes needed" if num_bytes is not None else f"more than {written} bytes needed"
            free = _free_bytes(path) + written
            raise StorageError(f"cannot write {path}: {error.strerror}; {needed}, {free} free") from error
        if error.errno in _DENIED:
            found = f"cannot write {path}: {error.strerror}"
            raise StorageError(f"{found}; accepted: a folder that can be written to") from error
        raise


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
