"""What can be asked for: bundles, structures, and what a request would take."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.service.bodies import json_body, object_of
from maisi.service.bundles import describe
from maisi.service.helper import answered
from maisi.service.kinds import check_request
from maisi.service.problems import responses
from maisi.service.service import Ours, Service
from maisi.service.told import BundlesTold, PlanTold, StructuresTold
from maisi.service.vocabulary import structures

router = APIRouter(tags=["what there is"])


@router.get("/v1/models", response_model=BundlesTold, responses=responses())
def models(service: Ours) -> Any:
    """The bundles of this service, the default first."""
    return {"models": describe(service.places.bundles)}


@router.get("/v1/labels", response_model=StructuresTold, responses=responses())
def labels() -> Any:
    """The structures that label maps may hold."""
    return {"labels": structures()}


@router.get("/v1/plan", response_model=PlanTold, responses=responses(422, 503))
async def plan(
    service: Ours,
    kind: Annotated[str, Query(max_length=40, description="Kind of job.")] = "generate",
    request: Annotated[str, Query(max_length=20000, description="Its request, in JSON.")] = "{}",
) -> Any:
    """What a job would take, before it is asked for."""
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError) as error:
        raise InvalidConfigError(f"request: no JSON ({error}); accepted: an object such as {{}}") from error
    return await answered(planned, service, kind, asked)


@router.post(
    "/v1/plan", response_model=PlanTold, responses=responses(413, 415, 422, 503), openapi_extra=json_body("JobRequest")
)
async def plan_of_body(request: Request, service: Ours) -> Any:
    """What a job would take, before it is asked for."""
    asked = object_of(await request.body(), request.headers.get("content-type"), ("kind", "request"))
    return await answered(planned, service, asked["kind"], asked["request"])


def planned(service: Service, kind: Any, asked: Any) -> PlanTold:
    """What a job would take; what would be refused is told in `problems`, for a form that is being filled in."""
    try:
        checked = check_request(str(kind), asked)
        resolved = service.places.resolved(str(kind), checked)
        service.jobs.limits.memory_of(resolved)  # refuses more than all workers have
    except InvalidRequestError as error:
        return PlanTold(problems=tuple(str(error).splitlines()))
    told = service.planner.plan(str(kind), resolved)
    return told.model_copy(update={"problems": tuple(map(service.places.named, told.problems))})
