"""Whether the service lives and is ready, and what it counts."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from maisi.service.metrics import MEDIA_TYPE
from maisi.service.problems import problem, respond, responses
from maisi.service.service import Ours
from maisi.service.told import Health

router = APIRouter(tags=["service"])


@router.get("/v1/health/live", response_model=Health)
async def live() -> Any:
    """Whether the web process lives."""
    return {"status": "live"}


@router.get("/v1/health/ready", response_model=Health, responses={503: responses(503)[503]})
def ready(service: Ours) -> Response:
    """Whether jobs are carried out."""
    reason = service.why_not_ready()
    if reason:
        return respond(problem(503, reason), {"Retry-After": "2"})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=PlainTextResponse, responses=responses())
def metrics(service: Ours) -> Response:
    """Counts in the text format of Prometheus."""
    held = {"results": service.jobs.bytes_used(), "uploads": service.uploads.bytes_used()}
    limits = service.jobs.limits
    bounds = {
        "queued": limits.queued,
        "workers": limits.workers,
        "memory_bytes": limits.memory,
        "disk_bytes": limits.disk,
    }
    return Response(service.metrics.text(service.jobs.counts(), held, bounds), media_type=MEDIA_TYPE)
