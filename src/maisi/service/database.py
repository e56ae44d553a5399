"""The database of a job store: its tables, a connection for each thread, and transactions that wait for each other.

SQLite keeps the file of a closed connection open as long as any other of the process holds a lock, which in WAL mode is
always. So connections of threads that have ended are used again.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maisi.errors import InvalidRequestError, StorageError

VERSION = 1
WAIT_S = 30.0  # for a transaction of another process; each takes milliseconds

_TABLES = """
CREATE TABLE job (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    request TEXT NOT NULL,
    key TEXT UNIQUE,
    memory INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    stage TEXT,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    samples_done INTEGER NOT NULL DEFAULT 0,
    seconds_left REAL,
    problem TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    resolved TEXT,
    cancel REAL,
    events INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX job_of_state ON job (state, place);
CREATE TABLE event (
    job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    event TEXT NOT NULL,
    stage TEXT,
    data TEXT NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE artifact (
    job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (job, name)
) STRICT, WITHOUT ROWID;
"""


class _Lease:
    """A connection that a thread has, and that others may have after it."""

    def __init__(self, connection: sqlite3.Connection, free: deque[sqlite3.Connection]) -> None:
        self.connection, self._free = connection, free

    def __del__(self) -> None:
        self._free.append(self.connection)


class Database:
    """An SQLite file in WAL mode: readers never wait, and what was committed survives every kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._free: deque[sqlite3.Connection] = deque()
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise InvalidRequestError(
                    f"{path} is of version {version}, this maisi writes {VERSION}; accepted: another folder"
                )

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        lease: _Lease | None = getattr(self._local, "lease", None)
        if lease is None:
            try:
                found = self._free.pop()
            except IndexError:
                found = _connect(self.path)
            lease = self._local.lease = _Lease(found, self._free)
        return lease.connection

    def close(self) -> None:
        """Close the connection of this thread, and those of threads that have ended."""
        self._local.__dict__.pop("lease", None)
        while self._free:
            self._free.pop().close()

    @contextmanager
    def transaction(self, *, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block writes, and nothing of others in between.

        What is not `lasting` survives a kill, but not a power cut; that spares the wait for the disk.

        Raises `StorageError` where the disk is full or the database is damaged.
        """
        connection = self.connection
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise StorageError(
                f"cannot write to {self.path}: {error}; accepted: remove jobs and uploads, or ask again later"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.DatabaseError as error:
        raise StorageError(f"cannot open {path}: {error}") from error
    return connection
