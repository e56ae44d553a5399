"""Errors as problem documents (RFC 9457), in the words of the command line."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from maisi.errors import (
    InvalidConfigError,
    InvalidRequestError,
    JobConflictError,
    MaisiError,
    QueueFullError,
    RunError,
    StoppedError,
    StorageError,
    TooLargeError,
    UnknownJobError,
    UnknownUploadError,
)
from maisi.service.helper import FULL, no_room
from maisi.service.job import Fault, Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
STATUSES: tuple[tuple[type[MaisiError], int, str], ...] = (  # the first that fits
    (UnknownJobError, 404, "There is no such job"),
    (UnknownUploadError, 404, "There is no such upload"),
    (JobConflictError, 409, "The job is in another state"),
    (TooLargeError, 413, "Too large"),
    (QueueFullError, 429, "The queue is full"),
    (StorageError, 507, "No room"),
    (StoppedError, 503, "The service is ending"),
    (InvalidRequestError, 422, "The request cannot be carried out"),
    (RunError, 500, "It failed while it was carried out"),
    (MaisiError, 500, "It failed"),
)
MEANINGS = {
    400: "No JSON, or no request that HTTP knows",
    401: "No token, or a wrong one",
    403: "A page of another place asks",
    404: "There is no such thing here",
    405: "Not with this method",
    409: "It is in another state",
    411: "A body without a length",
    413: "The body is too large",
    415: "Another kind of body",
    416: "No such range",
    422: "The request cannot be carried out",
    429: "The queue is full; Retry-After says when to ask again",
    500: "It failed",
    503: "Not ready, or ending",
    504: "It took too long",
    507: "No room",
}


def problem(status: int, detail: str, title: str | None = None) -> Problem:
    """The document of a status; what would be accepted is taken from the text, which says it after `accepted:`."""
    _, sign, accepted = detail.partition("accepted: ")
    return Problem(
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        accepted=" ".join(accepted.split("\n")[0].split()) if sign else None,
    )


def problem_of(error: MaisiError) -> Problem:
    """The document of an error; of settings each line is one of `errors`."""
    status, title = next((status, title) for kind, status, title in STATUSES if isinstance(error, kind))
    found = problem(status, str(error), title)
    if isinstance(error, InvalidConfigError):
        found = found.model_copy(update={"errors": tuple(_fault(line) for line in str(error).splitlines())})
    return found


def _fault(line: str) -> Fault:
    where, _, what = line.partition(": ")
    if what and " " not in where:
        return Fault(where=where, what=what)
    quoted = line.split("'")[1] if line.count("'") > 1 else ""
    return Fault(where=quoted, what=line)


def respond(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that carries a document."""
    content = found.model_dump(mode="json", exclude_none=True)
    if not found.errors:
        content.pop("errors", None)
    return JSONResponse(content, found.status, dict(headers or {}), MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the problems that an operation answers with, besides those that each may."""
    reference = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": MEANINGS[status], "content": {MEDIA_TYPE: {"schema": reference}}}
        for status in sorted({400, 401, 403, 500, *statuses})
    }


def add_handlers(app: FastAPI) -> None:
    """Every error of an application is answered with a document."""
    app.add_exception_handler(MaisiError, _on_ours)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(OSError, _on_system)
    app.add_exception_handler(Exception, _on_bug)


async def _on_ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MaisiError)
    found: Problem = request.app.state.service.places.told_problem(problem_of(error))
    if found.status >= 500:
        logger.warning("%s %s: %s", request.method, request.url.path, error)
    return respond(found, {"Retry-After": str(error.seconds)} if isinstance(error, QueueFullError) else None)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    plain = error.detail == HTTPStatus(error.status_code).phrase
    detail = f"{request.method} {request.url.path}: {MEANINGS.get(error.status_code, error.detail).lower()}"
    return respond(problem(error.status_code, detail if plain else str(error.detail)), error.headers)


async def _on_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    told = [(".".join(map(str, each["loc"][1:])), str(each["msg"])) for each in error.errors()]
    found = problem(422, "\n".join(f"{where}: {what}" for where, what in told), "The request cannot be carried out")
    faults = tuple(Fault(where=where, what=what) for where, what in told)
    return respond(found.model_copy(update={"errors": faults}))


async def _on_gone(request: Request, error: Exception) -> JSONResponse:
    """What nobody reads any more: the client has left before its body was complete."""
    return respond(problem(400, "the body ended before its length was reached; accepted: all of it"))


async def _on_system(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno not in FULL:
        return await _on_bug(request, error)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return respond(problem(507, no_room(error), "No room"))


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return respond(problem(500, f"{type(error).__name__} (this is a bug of maisi; its log says more)"))
