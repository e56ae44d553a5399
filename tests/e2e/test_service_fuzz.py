"""The REST under requests that nobody would write: none is answered with an error of the server, or against its schema.

Schemathesis draws requests, good and bad, from `/openapi.json`, always the same ones.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from maisi.errors import ClaimLostError
from maisi.service.app import create_app
from maisi.service.jobs import JobStore
from maisi.service.service import Service
from maisi.service.settings import ServeSettings
from maisi.service.told import PlanTold

TOKEN = "0123456789abcdef0123"
EXAMPLES = 12


class _NoPlanner:
    """Tells nothing: what a plan says of networks is tested elsewhere."""

    def plan(self, kind: str, request: dict[str, Any]) -> PlanTold:
        return PlanTold(how=kind)

    def close(self) -> None:
        """There is nothing to close."""


class _Ready:
    """A supervisor whose workers are ready: they are threads here."""

    is_ready = True


@contextmanager
def done_at_once(store: JobStore) -> Iterator[None]:
    """A worker to whom every job is done, so that whoever waits for one gets an answer."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.01):
            job = store.claim("worker")
            if job is not None:
                with suppress(ClaimLostError):
                    store.finish(job.id, "worker", "done")
        store.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema of a service with a token, whose jobs are done as soon as they are claimed."""
    data: Path = tmp_path_factory.mktemp("fuzz") / "data"
    service = Service.of(ServeSettings(data=data, token=TOKEN, run_timeout=20))
    service = replace(service, planner=_NoPlanner(), supervisor=_Ready())  # type: ignore[arg-type]
    with done_at_once(service.jobs):
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


OPERATIONS = (
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}"),
    ("DELETE", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs/{id}/events"),
    ("GET", "/v1/jobs/{id}/artifacts"),
    ("GET", "/v1/jobs/{id}/artifacts/{name}"),
    ("GET", "/v1/jobs/{id}/archive"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/uploads/{id}"),
    ("DELETE", "/v1/uploads/{id}"),
    ("GET", "/v1/uploads/{id}/volume.nii.gz"),
    ("GET", "/v1/models"),
    ("GET", "/v1/labels"),
    ("GET", "/v1/plan"),
    ("POST", "/v1/plan"),
    ("GET", "/v1/license"),
    ("GET", "/v1/maisi/info"),
    ("POST", "/v1/maisi/run"),
    ("GET", "/v1/health/live"),
    ("GET", "/v1/health/ready"),
    ("GET", "/metrics"),
)

WITHOUT_INPUT = (("GET", "/v1/health/live"), ("GET", "/v1/health/ready"))
BEYOND_THEIR_SCHEMA = (("POST", "/v1/jobs"), ("POST", "/v1/uploads"), ("GET", "/v1/plan"), ("POST", "/v1/maisi/run"))
"""Some requests are refused that the schema allows: settings that do not go together, files that are none."""


def test_every_operation_is_tried(rest: Any) -> None:
    found = {(each.ok().method.upper(), each.ok().path) for each in rest.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (*operation, mode)
        for operation in OPERATIONS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation not in WITHOUT_INPUT
    ],
)
def test_no_request_breaks_the_service(rest: Any, method: str, path: str, mode: GenerationMode) -> None:
    excluded = [positive_data_acceptance] if (method, path) in BEYOND_THEIR_SCHEMA else []
    excluded += [negative_data_rejection] if (method, path) == ("POST", "/v1/plan") else []  # it tells what is wrong
    cases = rest[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def tried(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=excluded, timeout=120)

    tried()
