"""Which ended jobs give way, with their files: by age, by number, by bytes."""

import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from maisi.errors import JobConflictError, UnknownJobError
from maisi.service.job import Job, Limits
from maisi.service.jobs import FOLDERS, JobStore
from maisi.storage.folders import PARTIAL

logger = logging.getLogger(__name__)


def retire(store: JobStore, now: datetime | None = None) -> list[str]:
    """Remove the jobs that the limits of a store do not keep, and folders of no job; gives the ids of the jobs.

    Results that a waiting or running job reads stay.
    """
    gone = []
    for job in too_many(store.ended(), store.limits, now or datetime.now(UTC)):
        if store.is_read(job.id):
            continue
        try:
            store.remove(job.id)
        except (UnknownJobError, JobConflictError):  # a client was first
            continue
        gone.append(job.id)
    for folder in (store.folder / FOLDERS).iterdir():
        if not store.has(folder.name.lstrip(".").partition(PARTIAL)[0]):
            logger.info("removing %s, which belongs to no job", folder)
            shutil.rmtree(folder, ignore_errors=True)
    return gone


def too_many(ended: Sequence[tuple[Job, int]], limits: Limits, now: datetime) -> list[Job]:
    """Jobs that are not kept, of (job, bytes) with the oldest end first; the last to end stays whatever its size."""
    gone, total = [], 0
    for place, (job, num_bytes) in enumerate(reversed(ended)):
        assert job.finished is not None
        total += num_bytes
        is_old = limits.keep_days is not None and now - job.finished > timedelta(days=limits.keep_days)
        is_beyond = limits.keep_jobs is not None and place >= limits.keep_jobs
        is_large = limits.keep_bytes is not None and total > limits.keep_bytes and place > 0
        if is_old or is_beyond or is_large:
            gone.append(job)
    return gone[::-1]
