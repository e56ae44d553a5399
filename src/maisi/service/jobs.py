"""The durable store of jobs: each is carried out once, by one worker at a time, and survives every kill.

A worker claims a job by its owner mark (`storage.owners`: host, boot, process, start); all that it writes later is
taken only while the claim holds. Results are files in the folder of the job; those that its run has published are its
artifacts. Imports no torch.
"""

import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maisi.compute.compute import format_bytes
from maisi.errors import (
    ClaimLostError,
    JobConflictError,
    QueueFullError,
    QuotaError,
    UnknownJobError,
)
from maisi.service.database import Database
from maisi.service.job import ENDED, Event, Job, Limits, Problem, State, too_many_deaths

__all__ = ["Event", "Job", "JobStore", "Limits", "Problem", "State"]

DATABASE, FOLDERS = "jobs.sqlite", "jobs"
LONGEST_WAIT_S, GUESSED_JOB_S, RECENT_JOBS = 3600, 30.0, 20
_COLUMNS = tuple(name for name in Job.model_fields if name != "artifacts")
_SELECT = f"SELECT place, {', '.join(_COLUMNS)} FROM job"


class JobStore:
    """Jobs in `folder`, for any number of threads and processes of one machine."""

    def __init__(self, folder: Path, limits: Limits = Limits()) -> None:
        self.folder, self.limits = folder, limits
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / FOLDERS).mkdir(exist_ok=True)
        self._database = Database(folder / DATABASE)

    # For clients ------------------------------------------------------------------------------------------------------

    def submit(self, kind: str, request: Mapping[str, Any], key: str | None = None) -> Job:
        """A new job that waits for a worker; with a `key` that was given before, the job that it stands for.

        Raises `JobConflictError` where the key stands for another request, `InvalidPlanError` where the request asks
        for more memory than all workers have, `QuotaError` where results take all the room that they may, and
        `QueueFullError`.
        """
        memory, text = self.limits.memory_of(request), json.dumps(request, sort_keys=True)
        with self._database.transaction() as connection:
            earlier = connection.execute("SELECT id, kind, request FROM job WHERE key = ?", (key,)).fetchone()
            if earlier is not None:
                if (earlier["kind"], earlier["request"]) != (kind, text):
                    raise JobConflictError(f"the key {key!r} stands for another request; accepted: a new key")
                return self._get(connection, earlier["id"])
            self._check_room(connection)
            id = secrets.token_hex(12)
            connection.execute(
                "INSERT INTO job (id, kind, request, key, memory, created) VALUES (?, ?, ?, ?, ?, ?)",
                (id, kind, text, key, memory, time.time()),
            )
            return self._get(connection, id)

    def get(self, id: str) -> Job:
        """The job of an id; raises `UnknownJobError`."""
        return self._get(self._database.connection, id)

    def jobs(self, state: State | None = None, limit: int = 50, before: str | None = None) -> list[Job]:
        """Jobs, the newest first; `before` is the id of the last one of the page before."""
        connection = self._database.connection
        place = None if before is None else self._row(connection, before)["place"]
        rows = connection.execute(
            f"{_SELECT} WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR place < ?2) ORDER BY place DESC LIMIT ?3",
            (state, place, limit),
        ).fetchall()
        return [self._job(connection, row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Jobs by their state."""
        rows = self._database.connection.execute("SELECT state, count(*) FROM job GROUP BY state").fetchall()
        return dict.fromkeys(("queued", "running", *ENDED), 0) | {row[0]: row[1] for row in rows}

    def cancel(self, id: str) -> Job:
        """Cancel a job: one that waits ends at once, one that runs within its next step, one that has ended stays."""
        with self._database.transaction() as connection:
            row = self._row(connection, id)
            if row["state"] == "queued":
                self._end(connection, id, "cancelled", None)
            elif row["state"] == "running":
                connection.execute("UPDATE job SET cancel = coalesce(cancel, ?) WHERE id = ?", (time.time(), id))
            return self._get(connection, id)

    def remove(self, id: str) -> None:
        """Forget a job that has ended, and remove its files; raises `JobConflictError` for one that has not."""
        with self._database.transaction() as connection:
            if self._row(connection, id)["state"] not in ENDED:
                raise JobConflictError(f"job {id} has not ended; accepted: cancel it first")
            connection.execute("DELETE FROM job WHERE id = ?", (id,))
        shutil.rmtree(self.folder_of(id), ignore_errors=True)

    def events(self, id: str, after: int = 0) -> list[Event]:
        """What happened to a job after the event of that number; of each stage only the newest step is kept."""
        connection = self._database.connection
        rows = connection.execute(
            "SELECT number, event, data FROM event WHERE job = ? AND number > ? ORDER BY number", (id, after)
        ).fetchall()
        if not rows:
            self._row(connection, id)
        return [Event(number=row["number"], event=row["event"], data=json.loads(row["data"])) for row in rows]

    def artifacts(self, id: str) -> list[Path]:
        """Files of the result that are in place."""
        return [self.folder_of(id) / name for name in self.get(id).artifacts]

    def folder_of(self, id: str) -> Path:
        """The folder that a job's results go to; it is there once something is."""
        return self.folder / FOLDERS / id

    def bytes_used(self) -> int:
        """Bytes of all artifacts."""
        return int(self._database.connection.execute("SELECT coalesce(sum(bytes), 0) FROM artifact").fetchone()[0])

    def check_quota(self) -> None:
        """Nothing, or a `QuotaError` where results take all the room that they may."""
        used, limit = self.bytes_used(), self.limits.disk
        if limit is not None and used >= limit:
            raise QuotaError(
                f"results take {format_bytes(used)} of {format_bytes(limit)}; accepted: remove jobs that have ended "
                "(DELETE /v1/jobs/ID)"
            )

    # For workers ------------------------------------------------------------------------------------------------------

    def claim(self, worker: str) -> Job | None:
        """The job that waits longest, now this worker's; None where none waits, or its memory is in use.

        Jobs are not overtaken: one that needs much memory gets it when those before it have ended.
        """
        if self._database.connection.execute("SELECT 1 FROM job WHERE state = 'queued' LIMIT 1").fetchone() is None:
            return None
        with self._database.transaction(lasting=False) as connection:
            row = connection.execute(
                "SELECT id, memory FROM job WHERE state = 'queued' ORDER BY place LIMIT 1"
            ).fetchone()
            if row is None or not self._has_memory(connection, row["memory"]):
                return None
            connection.execute(
                "UPDATE job SET state = 'running', worker = ?, tries = tries + 1, started = coalesce(started, ?) "
                "WHERE id = ?",
                (worker, time.time(), row["id"]),
            )
            return self._get(connection, row["id"])

    def resolved(self, id: str, worker: str, resolve: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The request as it is carried out, all that it left open filled in: by the first worker, for all others."""
        with self._database.transaction(lasting=False) as connection:
            found = self._claimed(connection, id, worker)["resolved"]
            if found is None:
                found = json.dumps(resolve())
                connection.execute("UPDATE job SET resolved = ? WHERE id = ?", (found, id))
        request: dict[str, Any] = json.loads(found)
        return request

    def is_cancelled(self, id: str, worker: str) -> bool:
        """Whether the job of a worker was asked to stop; raises `ClaimLostError` where it is another's."""
        row = self._database.connection.execute("SELECT worker, cancel FROM job WHERE id = ?", (id,)).fetchone()
        if row is None or row["worker"] != worker:
            raise ClaimLostError(f"job {id} was taken from this worker")
        return row["cancel"] is not None

    def progress(
        self, id: str, worker: str, stage: str, done: int, total: int, seconds_left: float | None = None
    ) -> None:
        """Tell how far a stage is; raises `ClaimLostError`."""
        with self._database.transaction(lasting=False) as connection:
            row = self._claimed(connection, id, worker)
            connection.execute(
                "UPDATE job SET stage = ?, done = ?, total = ?, seconds_left = ? WHERE id = ?",
                (stage, done, total, seconds_left, id),
            )
            connection.execute("DELETE FROM event WHERE job = ? AND event = 'stage' AND stage = ?", (id, stage))
            data = {"stage": stage, "done": done, "total": total, "sample": row["samples_done"]}
            self._happened(connection, id, "stage", {**data, "seconds_left": seconds_left}, stage)

    def published(self, id: str, worker: str, files: Sequence[Path], *, is_sample: bool = True) -> None:
        """Files of the result are in place, together; after a sample, a worker that dies has not died over nothing."""
        with self._database.transaction() as connection:
            self._claimed(connection, id, worker)
            self._add_artifacts(connection, id, files)
            connection.execute(
                "UPDATE job SET samples_done = samples_done + ?, deaths = CASE WHEN ? THEN 0 ELSE deaths END "
                "WHERE id = ?",
                (int(is_sample), is_sample, id),
            )

    def finish(
        self, id: str, worker: str, state: State, problem: Problem | None = None, files: Sequence[Path] = ()
    ) -> Job:
        """End a job, with files of its result that were not told of yet; raises `ClaimLostError`."""
        with self._database.transaction() as connection:
            self._claimed(connection, id, worker)
            self._add_artifacts(connection, id, files)
            return self._end(connection, id, state, problem)

    # For the supervisor -----------------------------------------------------------------------------------------------

    def grants(self) -> dict[str, int]:
        """The workers that have a job, and the memory that it was counted with."""
        rows = self._database.connection.execute("SELECT worker, memory FROM job WHERE state = 'running'").fetchall()
        return {row["worker"]: row["memory"] for row in rows}

    def cancelling(self, seconds: float) -> dict[str, str]:
        """Jobs that were asked to stop that long ago and run still: the worker of each."""
        rows = self._database.connection.execute(
            "SELECT id, worker FROM job WHERE state = 'running' AND cancel < ?", (time.time() - seconds,)
        ).fetchall()
        return {row["id"]: row["worker"] for row in rows}

    def release(
        self, is_gone: Callable[[str], bool], problem: Problem | None = None, *, died: bool = True
    ) -> list[str]:
        """Give up the claims of workers that are gone; gives the ids of their jobs.

        Such a job waits again, before those that came later; it ends where it was to be cancelled, where `problem` says
        what killed its worker, and where as many workers as the limits say have died over it without finishing a piece.
        """
        with self._database.transaction(lasting=False) as connection:
            rows = connection.execute("SELECT id, worker, cancel, deaths FROM job WHERE state = 'running'").fetchall()
            rows = [row for row in rows if is_gone(row["worker"])]
            for row in rows:
                deaths = row["deaths"] + died
                if row["cancel"] is not None:
                    self._end(connection, row["id"], "cancelled", None)
                elif problem is not None:
                    self._end(connection, row["id"], "failed", problem)
                elif deaths >= self.limits.tries:
                    self._end(connection, row["id"], "failed", too_many_deaths(deaths))
                else:
                    connection.execute(
                        "UPDATE job SET state = 'queued', worker = NULL, seconds_left = NULL, deaths = ? WHERE id = ?",
                        (deaths, row["id"]),
                    )
        return [row["id"] for row in rows]

    def ended(self) -> list[tuple[Job, int]]:
        """Jobs that have ended, the oldest end first, with the bytes of their artifacts."""
        connection = self._database.connection
        rows = connection.execute(f"{_SELECT} WHERE finished IS NOT NULL ORDER BY finished, place").fetchall()
        total = "SELECT coalesce(sum(bytes), 0) FROM artifact WHERE job = ?"
        return [(self._job(connection, row), connection.execute(total, (row["id"],)).fetchone()[0]) for row in rows]

    def has(self, id: str) -> bool:
        """Whether there is such a job."""
        return self._database.connection.execute("SELECT 1 FROM job WHERE id = ?", (id,)).fetchone() is not None

    def is_read(self, id: str) -> bool:
        """Whether a job that has not ended names the folder of this one in its request."""
        named = self._database.connection.execute(
            "SELECT 1 FROM job WHERE finished IS NULL AND id != ?1 AND instr(request, ?2) > 0", (id, f"/{FOLDERS}/{id}")
        )
        return named.fetchone() is not None

    def close(self) -> None:
        """Close the connection of this thread."""
        self._database.close()

    # Within -----------------------------------------------------------------------------------------------------------

    def _has_memory(self, connection: sqlite3.Connection, wanted: int) -> bool:
        used = connection.execute("SELECT coalesce(sum(memory), 0) FROM job WHERE state = 'running'").fetchone()[0]
        return self.limits.memory is None or used + wanted <= self.limits.memory or used == 0

    def _check_room(self, connection: sqlite3.Connection) -> None:
        self.check_quota()
        waiting = connection.execute("SELECT count(*) FROM job WHERE state = 'queued'").fetchone()[0]
        if waiting >= self.limits.queued:
            seconds = self._seconds_a_job(connection) / self.limits.workers
            seconds = min(LONGEST_WAIT_S, max(1, round(seconds)))
            raise QueueFullError(
                f"{waiting} jobs wait, as many as this service takes; accepted: again in {seconds} s", seconds
            )

    def _seconds_a_job(self, connection: sqlite3.Connection) -> float:
        """How long recent jobs took."""
        mean = connection.execute(
            "SELECT avg(finished - started) FROM (SELECT finished, started FROM job WHERE state = 'done' "
            "ORDER BY finished DESC LIMIT ?)",
            (RECENT_JOBS,),
        ).fetchone()[0]
        return GUESSED_JOB_S if mean is None else float(mean)

    def _row(self, connection: sqlite3.Connection, id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UnknownJobError(f"there is no job {id!r}; accepted: the id of a job of GET /v1/jobs")
        return row

    def _get(self, connection: sqlite3.Connection, id: str) -> Job:
        return self._job(connection, self._row(connection, id))

    def _job(self, connection: sqlite3.Connection, row: sqlite3.Row) -> Job:
        names = connection.execute("SELECT name FROM artifact WHERE job = ? ORDER BY name", (row["id"],)).fetchall()
        told = {name: row[name] for name in _COLUMNS} | {"request": json.loads(row["request"])}
        times = {name: _time(row[name]) for name in ("created", "started", "finished")}
        problem = None if row["problem"] is None else Problem.model_validate_json(row["problem"])
        return Job(**told | times | {"problem": problem, "artifacts": tuple(name[0] for name in names)})

    def _claimed(self, connection: sqlite3.Connection, id: str, worker: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(
            "SELECT resolved, samples_done FROM job WHERE id = ? AND worker = ? AND state = 'running'", (id, worker)
        ).fetchone()
        if row is None:
            raise ClaimLostError(f"job {id} was taken from this worker")
        return row

    def _add_artifacts(self, connection: sqlite3.Connection, id: str, files: Iterable[Path]) -> None:
        for file in files:
            name = file.relative_to(self.folder_of(id)).as_posix()
            known = connection.execute("SELECT 1 FROM artifact WHERE job = ? AND name = ?", (id, name)).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO artifact (job, name, bytes) VALUES (?, ?, ?)", (id, name, file.stat().st_size)
            )
            if known is None:
                self._happened(connection, id, "artifact", {"name": name})

    def _happened(
        self, connection: sqlite3.Connection, id: str, event: str, data: Mapping[str, Any], stage: str | None = None
    ) -> None:
        connection.execute("UPDATE job SET events = events + 1 WHERE id = ?", (id,))
        connection.execute(
            "INSERT INTO event (job, number, event, stage, data) SELECT id, events, ?, ?, ? FROM job WHERE id = ?",
            (event, stage, json.dumps(data), id),
        )

    def _end(self, connection: sqlite3.Connection, id: str, state: State, problem: Problem | None) -> Job:
        connection.execute(
            "UPDATE job SET state = ?, finished = ?, problem = ?, worker = NULL, seconds_left = NULL WHERE id = ?",
            (state, time.time(), None if problem is None else problem.model_dump_json(), id),
        )
        job = self._get(connection, id)
        self._happened(connection, id, "end", job.model_dump(mode="json"))
        return job


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
