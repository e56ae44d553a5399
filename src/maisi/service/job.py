"""What a job of the service is, and what is told about it. Imports no torch."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from maisi.compute.compute import Bytes, format_bytes
from maisi.errors import InvalidConfigError, InvalidPlanError
from maisi.shapes import Frozen

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")


class Fault(Frozen):
    """One thing that is wrong with a request: the path of the setting, and what is wrong with it."""

    where: str
    what: str


class Problem(Frozen):
    """A problem document (RFC 9457): why a request was refused, or what a job failed of."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    accepted: str | None = None
    errors: tuple[Fault, ...] = ()


class Job(Frozen):
    """A job as its store knows it. Times are UTC; `samples_done` are the pieces of its result that are in place.

    `done` of `total` are steps of `stage`. `tries` counts the workers that have taken it up. `seconds_left` is None
    where nobody can tell.
    """

    id: str
    kind: str
    request: dict[str, Any]
    state: State = "queued"
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    samples_done: int = 0
    seconds_left: float | None = None
    problem: Problem | None = None
    artifacts: tuple[str, ...] = ()
    tries: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.state in ENDED


class Event(Frozen):
    """Something that happened to a job: a stage, an artifact or its end. `number` grows by one with each of a job."""

    number: int
    event: Literal["stage", "artifact", "end"]
    data: dict[str, Any]


class Limits(Frozen):
    """How much a store takes, and how long it keeps it."""

    queued: int = Field(default=100, ge=1, description="Jobs that may wait.")
    tries: int = Field(
        default=3, ge=1, description="Workers that may die over a job, one after the other, before it counts as failed."
    )
    memory: Bytes | None = Field(default=None, description="Memory of all workers together, such as 16GB.")
    workers: int = Field(default=1, ge=1, description="Processes that carry out jobs.")
    disk: Bytes | None = Field(default=None, description="Bytes that results may take; beyond, jobs are refused.")
    keep_jobs: int | None = Field(default=None, ge=1, description="Ended jobs that are kept, the newest.")
    keep_days: float | None = Field(default=None, ge=0, description="Days that ended jobs are kept.")
    keep_bytes: Bytes | None = Field(default=None, description="Bytes of ended jobs that are kept, the newest.")

    @property
    def share(self) -> int | None:
        """Bytes of memory of a job that asks for none."""
        return None if self.memory is None else self.memory // self.workers

    def memory_of(self, request: Mapping[str, Any]) -> int:
        """Bytes that a job is counted with: what it asks for, else the share of a worker; 0 where there is no limit.

        Raises `InvalidConfigError` for what is no amount, `InvalidPlanError` for more than there is.
        """
        compute = request.get("compute")
        asked = compute.get("memory") if isinstance(compute, Mapping) else None
        if self.memory is None or self.share is None:
            return 0
        if asked is None:
            return self.share
        try:
            wanted = int(TypeAdapter(Bytes).validate_python(asked))
        except ValidationError as error:
            raise InvalidConfigError(
                f"compute.memory: {asked!r} is no amount of memory; accepted: such as 8GB"
            ) from error
        if wanted > self.memory:
            raise InvalidPlanError(
                f"compute.memory: {format_bytes(wanted)} is more than the workers of this service have together; "
                f"accepted: up to {format_bytes(self.memory)}"
            )
        return wanted


def too_many_deaths(deaths: int) -> Problem:
    """Why a job is not taken up once more."""
    return Problem(
        title="The job kills its workers",
        status=500,
        detail=f"{deaths} workers died over this job, one after the other (out of memory, or killed)",
        accepted="a smaller request, or compute.memory",
    )
