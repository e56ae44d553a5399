"""Jobs: asked for, listed, watched, cancelled."""

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import sleep, to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from maisi.errors import InvalidConfigError, UnknownJobError
from maisi.service.bodies import json_body, object_of
from maisi.service.job import ENDED, Job, State
from maisi.service.kinds import check_request
from maisi.service.problems import responses
from maisi.service.service import Ours, Service
from maisi.service.told import JobsTold

MOST_EVENTS = 2**63 - 1  # a number that the store can hold

router = APIRouter(tags=["jobs"])

ASKED_EVERY_S, COMMENT_EVERY_S = 0.25, 15.0
JobId = Annotated[str, Path(description="Id of a job.", max_length=64)]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=200, description="A second request with this key gives the first job."),
]


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=Job,
    responses=responses(409, 413, 415, 422, 429, 507),
    openapi_extra=json_body("JobRequest"),
)
async def submit(request: Request, service: Ours, idempotency_key: Key = None) -> Response:
    """Ask for a job: its kind, and the settings of the command of that name. It waits for a worker."""
    asked = object_of(await request.body(), request.headers.get("content-type"), ("kind", "request"))
    job = await to_thread.run_sync(submit_job, service, asked["kind"], asked["request"], idempotency_key)
    told = service.places.told(job).model_dump(mode="json")
    return JSONResponse(told, 202, {"Location": f"/v1/jobs/{job.id}"})


def submit_job(service: Service, kind: Any, asked: Any, key: str | None = None) -> Job:
    """A new job of a kind, checked as far as no network is needed for."""
    if not isinstance(kind, str):
        raise InvalidConfigError(f"kind: {kind!r} is not accepted; it should be a name such as generate")
    checked = check_request(kind, asked)
    return service.jobs.submit(kind, service.places.resolved(kind, checked), key)


@router.get("/v1/jobs", response_model=JobsTold, responses=responses(404, 422))
def listed(
    service: Ours,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many.")] = 50,
    before: Annotated[str | None, Query(max_length=64, description="Id of the last job of the page before.")] = None,
) -> Any:
    """Jobs, the newest first."""
    return {"jobs": [service.places.told(job) for job in service.jobs.jobs(state, limit, before)]}


@router.get("/v1/jobs/{id}", response_model=Job, responses=responses(404, 422))
def one(id: JobId, service: Ours) -> Any:
    """A job as it stands."""
    return service.places.told(service.jobs.get(id))


@router.delete(
    "/v1/jobs/{id}",
    response_model=Job,
    status_code=202,
    responses={204: {"description": "It had ended; its files are removed."}, **responses(404, 409, 422)},
)
def end(id: JobId, service: Ours) -> Any:
    """Cancel a job; of one that has ended, remove the files."""
    if service.jobs.get(id).has_ended:
        service.jobs.remove(id)
        return Response(status_code=204)
    return service.places.told(service.jobs.cancel(id))


@router.get(
    "/v1/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Events as they come: stage, artifact, end.", "content": {"text/event-stream": {}}},
        **responses(404, 422),
    },
)
async def events(
    id: JobId,
    service: Ours,
    last: Annotated[
        str | None, Header(alias="Last-Event-ID", max_length=20, description="Number of the last event that was seen.")
    ] = None,
) -> Response:
    """Server-sent events of a job, from the first or from the one after `Last-Event-ID`, until it has ended.

    They also stop where the service ends: clients ask again, with `Last-Event-ID`.
    """
    after = min(int(last), MOST_EVENTS) if last is not None and last.isascii() and last.isdigit() else 0
    await to_thread.run_sync(service.jobs.get, id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(service, id, after), media_type="text/event-stream", headers=headers)


async def _stream(service: Service, id: str, after: int) -> AsyncIterator[str]:
    said = time.monotonic()
    yield ": watching\n\n"
    while not service.ending.is_set():
        try:
            has_ended = (await to_thread.run_sync(service.jobs.get, id)).state in ENDED
            found = await to_thread.run_sync(service.jobs.events, id, after)
        except UnknownJobError:  # removed while it was watched
            return
        for event in found:
            after, said = event.number, time.monotonic()
            data = json.dumps(service.places.told_event(event.data), ensure_ascii=False)
            yield f"id: {event.number}\nevent: {event.event}\ndata: {data}\n\n"
            if event.event == "end":
                return
        if has_ended and not found:  # and its end was seen before
            return
        if time.monotonic() - said > COMMENT_EVERY_S:
            said = time.monotonic()
            yield ": waiting\n\n"
        await sleep(ASKED_EVERY_S)
