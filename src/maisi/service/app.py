"""The web application of `maisi serve`. Its process imports no torch."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import create_task_group, sleep, to_thread
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from maisi import __version__
from maisi.service.guard import Guard
from maisi.service.openapi import describer
from maisi.service.problems import add_handlers
from maisi.service.routes import artifacts, catalogue, health, jobs, nim, uploads
from maisi.service.service import Service

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "static"
EXPIRED_EVERY_S = 600.0
ASKED_EVERY_S, GRACE_S = 0.5, 2.0  # for what is nearly answered when the service is to end
ASKED = ["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Range", "If-None-Match"]
TOLD = ["Location", "Retry-After", "ETag", "Content-Range", "Content-Disposition"]


def create_app(service: Service) -> FastAPI:
    """The application of a service: its REST, its page, and the guard before both."""
    app = FastAPI(
        title="maisi",
        version=__version__,
        description="Synthetic 3-D CT volumes with the organ and tumour labels that belong to them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=_middleware(service),
    )
    app.state.service = service
    add_handlers(app)
    for part in (jobs, artifacts, uploads, catalogue, nim, health):
        app.include_router(part.router)
    app.openapi = describer(app, service.token is not None)  # type: ignore[method-assign]
    _add_page(app)
    return app


def _middleware(service: Service) -> list[Middleware]:
    """The guard first; then the pages of other places that are let in."""
    guard = Middleware(Guard, service.settings, service.token, service.metrics.seen)
    if not service.settings.allow_origin:
        return [guard]
    origins = list(service.settings.allow_origin)
    methods = ["GET", "POST", "DELETE"]
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=ASKED, expose_headers=TOLD
    )
    return [guard, cors]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The work beside the answers: old uploads are removed, and at the end what is at work is ended."""
    service: Service = app.state.service
    async with create_task_group() as tasks:
        tasks.start_soon(_expire, service)
        tasks.start_soon(_end, service)
        yield
        tasks.cancel_scope.cancel()
    await to_thread.run_sync(service.close)


async def _expire(service: Service) -> None:
    while True:
        try:
            removed = await to_thread.run_sync(service.expire)
            if removed:
                logger.info("removed %d uploads that nobody has used", len(removed))
        except (OSError, RecursionError, sqlite3.Error):  # one folder or one moment: the next time may go well
            logger.exception("old uploads were not removed")
        await sleep(EXPIRED_EVERY_S)


async def _end(service: Service) -> None:
    """Let no answer wait for a helper once the service is to end."""
    while not service.ending.is_set():
        await sleep(ASKED_EVERY_S)
    await sleep(GRACE_S)
    while True:
        await to_thread.run_sync(service.close)
        await sleep(ASKED_EVERY_S)


def _add_page(app: FastAPI) -> None:
    """The page at `/`, where it was built; its files are public and hold nothing of anybody."""
    index = PAGE / "index.html"
    if not index.is_file():
        return

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(index)

    app.mount("/static", StaticFiles(directory=PAGE))
