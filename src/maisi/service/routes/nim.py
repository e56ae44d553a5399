"""The REST of NVIDIA's MAISI service (NIM 1.0.1), for clients that were written for it."""

import secrets
import time
from pathlib import Path
from typing import Any

from anyio import sleep, to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from maisi import __version__
from maisi.errors import InvalidConfigError, StoppedError
from maisi.service.bodies import json_body, read_json
from maisi.service.bundles import describe, licence_text
from maisi.service.helper import ENDING, answered
from maisi.service.job import Job
from maisi.service.nim_request import NimRequest, generate_settings
from maisi.service.nim_results import check_folder, deliver, packed
from maisi.service.problems import problem, respond, responses
from maisi.service.routes.artifacts import SentOnce
from maisi.service.routes.jobs import submit_job
from maisi.service.sending import Target, check_target, send
from maisi.service.service import Ours, Service
from maisi.service.vocabulary import structures
from maisi.storage.settings import check_settings

router = APIRouter(tags=["as NVIDIA's MAISI NIM"])

ASKED_EVERY_S = 0.5
SEEDS = 2**31
ZIP: dict[str, Any] = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


@router.get("/v1/license", response_class=PlainTextResponse, responses=responses())
def licence(service: Ours) -> str:
    """The licence of the default bundle's weights."""
    return licence_text(next(iter(service.places.bundles.values())))


@router.get("/v1/maisi/info", responses=responses())
def info(service: Ours) -> dict[str, Any]:
    """Version and labels."""
    default = describe(service.places.bundles)[0]
    labels = {each["name"]: each["id"] for each in structures()}
    return {
        "name": "maisi",
        "version": __version__,
        "model": default["name"],
        "labels": labels,
        "limits": default["limits"],
    }


@router.post(
    "/v1/maisi/run",
    response_class=FileResponse,
    responses={
        200: {"description": "A zip of images and masks, or a message where they were written elsewhere.", **ZIP},
        **responses(409, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra=json_body("NimRequest"),
)
async def run(request: Request, service: Ours) -> Response:
    """Make CTs with masks and wait for them: a zip of both, or a message where they were sent or written elsewhere."""
    asked = _asked(read_json(await request.body(), request.headers.get("content-type")))
    folder = check_folder(asked.local_working_dir, service.settings.outputs)
    target = await to_thread.run_sync(check_target, asked.pre_signed_url, service.settings.allow_upload_to)
    limits = describe(service.places.bundles)[0]["limits"]
    settings = generate_settings(asked, limits, secrets.randbelow(SEEDS))
    job = await to_thread.run_sync(submit_job, service, "generate", settings)
    ended = await _ended(request, service, job)
    headers = {"Maisi-Job": f"/v1/jobs/{job.id}"}
    if ended.state != "done":
        told = service.places.told(ended).problem or problem(503, f"job {job.id} was {ended.state}")
        return respond(told, headers)
    path = await answered(packed, service, ended, asked)
    return await to_thread.run_sync(_answer, path, folder, target, headers)


def _asked(body: Any) -> NimRequest:
    if not isinstance(body, dict):
        raise InvalidConfigError("the body is no object; accepted: one with num_output_samples and body_region")
    return check_settings(NimRequest, {name: value for name, value in body.items() if value is not None})


async def _ended(request: Request, service: Service, job: Job) -> Job:
    """The job once it has ended; where the client is gone, it takes too long, or the service ends, it is cancelled."""
    until = time.monotonic() + service.settings.run_timeout
    while True:
        found = await to_thread.run_sync(service.jobs.get, job.id)
        if found.has_ended:
            return found
        is_ending = service.ending.is_set()
        if is_ending or time.monotonic() > until or await request.is_disconnected():
            await to_thread.run_sync(service.jobs.cancel, job.id)
            if is_ending:
                raise StoppedError(ENDING)
            seconds = service.settings.run_timeout
            raise HTTPException(504, f"it took more than {seconds:g} s; accepted: less, or POST /v1/jobs, which waits")
        await sleep(ASKED_EVERY_S)


def _answer(path: Path, folder: Path | None, target: Target | None, headers: dict[str, str]) -> Response:
    """The zip itself, or a message of where it went."""
    if folder is None and target is None:
        return SentOnce(path, media_type="application/zip", filename="output.zip", headers=headers)
    try:
        if target is not None:
            send(path, target)
        names = [] if folder is None else deliver(path, folder)
    finally:
        path.unlink(missing_ok=True)
    told = "written to the local_working_dir" if folder is not None else "sent to the pre_signed_url"
    return JSONResponse(
        {"status": "success", "message": f"images and masks were {told}", "files": names}, headers=headers
    )
