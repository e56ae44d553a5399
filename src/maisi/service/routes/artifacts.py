"""Results of jobs: listed, file by file with ranges, and as one archive."""

from email.utils import formatdate
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from maisi.errors import JobConflictError
from maisi.service.archive import FORMATS, pack
from maisi.service.helper import answered
from maisi.service.job import Job
from maisi.service.problems import problem, respond, responses
from maisi.service.routes.jobs import JobId
from maisi.service.service import Ours, Service
from maisi.service.told import Artifacts

router = APIRouter(tags=["results"])

MEDIA_TYPES = {
    ".nii.gz": "application/gzip",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".png": "image/png",
    ".csv": "text/csv",
    ".zip": "application/zip",
    ".dcm": "application/dicom",
}
OTHER = "application/octet-stream"  # pages of a result too: they are looked at where they are saved
SHOWN = ("image/png", "application/json")
_BINARY = {"content": {OTHER: {"schema": {"type": "string", "format": "binary"}}}}
ONE_FILE: dict[int | str, dict[str, Any]] = {  # what `send_file` answers
    200: {"description": "The file.", **_BINARY},
    206: {"description": "A part of the file.", **_BINARY},
    304: {"description": "It is as the client has it."},
    **responses(404, 416, 422),
}


@router.get("/v1/jobs/{id}/artifacts", response_model=Artifacts, responses=responses(404, 422))
def listed(id: JobId, service: Ours) -> Any:
    """The files of a result that are in place."""
    folder = service.jobs.folder_of(id)
    files = [(name, folder / name) for name in service.jobs.get(id).artifacts]
    told = [
        {"name": name, "bytes": path.stat().st_size, "media_type": media_type(name)}
        for name, path in files
        if path.is_file()
    ]
    return {"artifacts": told}


@router.get(
    "/v1/jobs/{id}/artifacts/{name:path}",
    response_class=FileResponse,
    responses=ONE_FILE,
)
def file(
    id: JobId,
    name: Annotated[str, Path(description="Name of the file.", max_length=400)],
    request: Request,
    service: Ours,
) -> Response:
    """One file of a result, or a range of its bytes."""
    if name not in service.jobs.get(id).artifacts:
        raise HTTPException(404, f"job {id} has no {name!r}; accepted: a name of GET /v1/jobs/{id}/artifacts")
    return send_file(service.jobs.folder_of(id) / name, name, request)


def send_file(path: FilePath, name: str, request: Request) -> Response:
    """A file with its tag: ranges of it, or 304 where the client has it already."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise HTTPException(404, f"{name!r} is not there any more; accepted: another file") from error
    kind = media_type(name)
    tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = {
        "ETag": tag,
        "Last-Modified": formatdate(found.st_mtime, usegmt=True),
        "Cache-Control": "private, no-cache",
    }
    if tag in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    disposition = "inline" if kind in SHOWN else "attachment"
    return SentFile(
        path, media_type=kind, filename=FilePath(name).name, content_disposition_type=disposition, headers=headers
    )


def media_type(name: str) -> str:
    """The media type of a file, by its name."""
    return next((kind for ending, kind in MEDIA_TYPES.items() if name.endswith(ending)), OTHER)


@router.get(
    "/v1/jobs/{id}/archive",
    response_class=FileResponse,
    responses={
        200: {
            "description": "A zip.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **responses(404, 409, 416, 422, 503, 507),
    },
)
async def archive(
    id: JobId,
    service: Ours,
    format: Annotated[Literal[FORMATS], Query(description="zip: as it is; else volumes in that format.")] = "zip",  # type: ignore[valid-type]
) -> Response:
    """All files of a result in one zip, as they are or with volumes in another format."""
    job = await to_thread.run_sync(service.jobs.get, id)
    return await packed(service, job, format)


async def packed(service: Service, job: Job, format: str) -> FileResponse:
    """The archive of a job, removed once it was sent."""
    if job.state == "queued" or not job.artifacts:
        raise JobConflictError(f"job {job.id} has no files yet; accepted: a job with artifacts")
    path = await answered(pack, service, job, format)
    name = f"maisi-{job.kind}-{job.id}{'' if format == 'zip' else '-' + format}.zip"
    headers = {"Cache-Control": "no-store"}
    return SentOnce(path, media_type="application/zip", filename=name, headers=headers)


class SentFile(FileResponse):
    """A file, whole or in ranges; ranges that there are not are refused with a document, as all is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Message | None = None

        async def unless_refused(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refusal = message
            if refusal is None:
                await send(message)

        await super().__call__(scope, receive, unless_refused)
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)

    async def _refuse(self, refusal: Message, scope: Scope, receive: Receive, send: Send) -> None:
        size = FilePath(self.path).stat().st_size
        said = Headers(scope=scope).get("range", "")
        found = problem(refusal["status"], f"range {said!r} of {size} bytes; accepted: bytes=0-{max(0, size - 1)}")
        told = {"Content-Range": f"bytes */{size}"} if refusal["status"] == 416 else None
        await respond(found, told)(scope, receive, send)


class SentOnce(SentFile):
    """A file that is removed once it was sent, or was not: a client that left, a range that it does not have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            FilePath(self.path).unlink(missing_ok=True)
