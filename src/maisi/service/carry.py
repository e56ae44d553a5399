"""One job, carried out by the task of its kind in the folder of the job, and told of in the store."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maisi.errors import (
    CancelledError,
    ClaimLostError,
    InvalidRequestError,
    LostProcessError,
    MaisiError,
    StoppedError,
    StorageError,
)
from maisi.runs.carry_out import Destination, carry_out
from maisi.runs.record import RunRecord, read_record
from maisi.runs.task import Output, Task, Watch
from maisi.runs.tasks import task_named
from maisi.service.job import Job, Problem
from maisi.service.jobs import JobStore
from maisi.service.pace import Pace
from maisi.storage.folders import PARTIAL, RUN_RECORD, RUN_SETTINGS
from maisi.storage.settings import check_settings

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 0.25
_RECORDS = (RUN_SETTINGS, RUN_RECORD)
_NAMES = {"encode": "latent", "decode": "volume", "segment file": "labels", "labels register": "labels"}


def carry(
    store: JobStore,
    job: Job,
    worker: str,
    resolved: Mapping[str, Any],
    go_on: Callable[[], None],
    carried_out: Callable[..., RunRecord | None] = carry_out,
) -> Job:
    """Carry out a claimed job and end it, well or not. `go_on` raises where the worker is to stop.

    A job that an earlier worker began goes on from its last finished piece. Raises what `go_on` raises,
    `ClaimLostError` and `LostProcessError`: then the job has not ended. `carried_out` may do the work elsewhere.
    """
    task = task_named(command_of(job.kind))
    folder = store.folder_of(job.id)
    try:
        request = check_settings(task.request, resolved)
        out = place_of(task, folder)
        clear(task, folder)
        record = finished_record(task, request, out)
        if record is None:
            watch = _Told(store, job, worker, go_on)
            record = carried_out(
                task, request, out, overwrite=task.output is Output.FILE, watch=Watch(watch.on_stage, watch.on_files)
            )
        assert record is not None
    except CancelledError:
        clear(task, folder)
        return store.finish(job.id, worker, "cancelled")
    except (ClaimLostError, LostProcessError, StoppedError):
        raise
    except Exception as error:  # noqa: BLE001 (a worker outlives every job)
        return store.finish(job.id, worker, "failed", problem_of(error, store.folder))
    place = Destination.of(task, request, out)
    names = dict.fromkeys([*record.outputs, place.settings, place.record])
    files = [path for path in (folder / name for name in names) if path.is_file()]
    problem = failed_check(record)
    return store.finish(job.id, worker, "done" if problem is None else "failed", problem, files)


def command_of(kind: str) -> str:
    """The command of a kind of job: `generate many` of generate-many."""
    return kind.replace("-", " ")


def place_of(task: Task[Any], folder: Path) -> Path:
    """Where a task writes: the folder of its job, or a file in it, called after what it holds."""
    if task.output is not Output.FILE:
        return folder
    suffix = ".nii.gz" if ".nii.gz" in task.suffixes else task.suffixes[0]
    return folder / f"{_NAMES.get(task.name, task.name.replace(' ', '_'))}{suffix}"


def clear(task: Task[Any], folder: Path) -> None:
    """Remove what a worker that is gone was just writing: a job has one worker at a time, wherever the last one ran."""
    if task.output is Output.FILE:
        folder.mkdir(parents=True, exist_ok=True)
    beside = folder.parent.glob(f".{folder.name}{PARTIAL}*")
    for partial in (*(folder.glob(f"{PARTIAL}*") if folder.is_dir() else ()), *beside):
        shutil.rmtree(partial, ignore_errors=True)


def finished_record(task: Task[Any], request: Any, out: Path) -> RunRecord | None:
    """The record of a run that was complete when its worker died, None where it was not: the record comes last."""
    place = Destination.of(task, request, out)
    path = place.folder / place.record
    return read_record(path) if path.is_file() else None


class _Told:
    """Tells the store of a run, and stops it where it was cancelled."""

    def __init__(self, store: JobStore, job: Job, worker: str, go_on: Callable[[], None]) -> None:
        self.store, self.id, self.worker, self.go_on = store, job.id, worker, go_on
        count = job.request.get("count")
        self.pace = Pace(count - job.samples_done if isinstance(count, int) else None)
        self.stage, self.told = "", 0.0
        self.goes_on = False  # after a sample that is in place

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Raise where the run is to stop, or has no room for more; tell the stage, but not each of many quick steps."""
        self.go_on()
        if self.store.is_cancelled(self.id, self.worker):
            raise CancelledError(f"job {self.id} was cancelled")
        if self.goes_on:
            self.store.check_quota()
            self.goes_on = False
        left, now = self.pace.seconds_left(stage, done, total), time.monotonic()
        if stage != self.stage or done == total or now - self.told >= TOLD_EVERY_S:
            self.stage, self.told = stage, now
            self.store.progress(self.id, self.worker, stage, done, total, left)

    def on_files(self, files: list[Path]) -> None:
        """Tell of files that are in place; those of a folder that is to appear as a whole are told at the end."""
        folder = self.store.folder_of(self.id)
        placed = [file for file in files if file.is_relative_to(folder) and PARTIAL not in str(file)]
        is_sample = any(not file.name.endswith(_RECORDS) for file in placed)
        self.store.published(self.id, self.worker, placed, is_sample=is_sample)
        if is_sample:
            self.pace.finished()
            self.goes_on = True


def failed_check(record: RunRecord) -> Problem | None:
    """What is wrong with a run that ended, but whose samples failed their check."""
    if not record.failed:
        return None
    shown = ", ".join(record.failed[:5])
    reasons = "; ".join(record.warnings[:3])
    return Problem(
        title="Samples failed their check",
        status=500,
        detail=f"{len(record.failed)} failed the check, see failed/: {shown}. {reasons}",
        accepted="another seed, or on_failure: keep (within quality, where the request has one)",
    )


def problem_of(error: Exception, folder: Path) -> Problem:
    """What a client is told of an error, without the places of the service."""
    detail = str(error).replace(f"{folder.absolute()}/", "")
    if isinstance(error, InvalidRequestError):
        return Problem(title="The request cannot be carried out", status=422, detail=detail)
    if isinstance(error, StorageError):
        return Problem(title="The results cannot be stored", status=507, detail=detail)
    if isinstance(error, MaisiError):
        return Problem(title="The job failed", status=500, detail=detail)
    if isinstance(error, MemoryError) or "can't allocate memory" in detail or "out of memory" in detail:
        return Problem(
            title="Out of memory",
            status=500,
            detail="there is not enough memory for this job",
            accepted="a smaller size, or compute.memory",
        )
    logger.error("a bug of maisi", exc_info=error)
    return Problem(title="Error", status=500, detail=f"{type(error).__name__}: {detail} (this is a bug of maisi)")
