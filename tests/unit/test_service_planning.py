"""What a job would take: told from its request by a process of its own, in the words of its check."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from made_service import client_of, made_service
from tiny_bundle import save_tiny_bundle

from maisi.errors import RunError, StoppedError
from maisi.service.planner import Planner
from maisi.service.planning import answer

SAID = {"size": [16, 16, 16], "spacing": [12, 12, 12], "phantom": True, "steps": 2}


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[str]:
    threads = torch.get_num_threads()
    yield str(save_tiny_bundle(tmp_path))
    torch.set_num_threads(threads)


def test_a_plan_grows_with_what_is_asked_for(bundle: str) -> None:
    small, large = (
        answer({"kind": "generate", "request": {**SAID, "bundle": bundle, **more}})
        for more in ({}, {"size": [32, 32, 32], "spacing": [6, 6, 6], "count": 2})
    )
    assert small["seconds"] < large["seconds"]
    assert small["bytes"] < large["bytes"]
    assert large["how"] == "2 of 32 x 32 x 32 voxels, 2 steps, in one piece"


def test_within_a_budget_a_plan_stays_within_it_or_says_what_would_do(bundle: str) -> None:
    question = {"kind": "generate", "request": {**SAID, "bundle": bundle}}
    within = answer({**question, "memory": 1_000_000_000})
    assert within["bytes"] < 1_000_000_000
    assert within["how"].endswith("within 1.0 GB")
    assert "accepted: --memory" in answer({**question, "memory": 1_000_000})["problems"][0]


def test_what_the_check_refuses_is_a_problem(bundle: str) -> None:
    told = answer({"kind": "generate", "request": {**SAID, "bundle": bundle, "size": [17, 16, 16]}})
    assert "multiple of 4" in told["problems"][0]
    told = answer({"kind": "encode", "request": {"source": "nothing.nii.gz", "bundle": bundle}})
    assert "no such file" in told["problems"][0]


def test_a_plan_is_for_a_worker_whatever_device_is_asked_for(bundle: str) -> None:
    question = {"kind": "generate", "request": {**SAID, "bundle": bundle, "compute": {"device": "cuda:7"}}}
    assert "problems" not in answer(question)
    told = answer({**question, "request": {**SAID, "compute": {"threads": 2}}, "threads": 1})
    assert told["problems"] == ["compute.threads: 2 are asked for, a worker has 1; accepted: up to as many"]


def test_more_memory_than_all_workers_have_is_told_before_a_job_is_asked_for(tmp_path: Path) -> None:
    asked = {"kind": "generate", "request": {"compute": {"memory": "9GB"}}}
    with client_of(made_service(tmp_path, memory="8GB", workers=2)) as client:
        told, refused = client.post("/v1/plan", json=asked).json(), client.post("/v1/jobs", json=asked)
    assert refused.status_code == 422
    assert told["problems"] == [refused.json()["detail"]]


def test_a_process_of_its_own_answers(tmp_path: Path) -> None:
    planner = Planner(threads=1)
    try:
        told = planner.plan("generate", {"bundle": str(tmp_path / "none")})
    finally:
        planner.close()
    assert "none" in told.problems[0]


def test_a_plan_names_files_as_its_request_does(tmp_path: Path) -> None:
    service = made_service(tmp_path)
    job = service.jobs.submit("generate", {})
    service.jobs.claim("worker")
    service.jobs.finish(job.id, "worker", "done")
    asked = {"kind": "encode", "request": {"source": f"job:{job.id}/"}}
    with client_of(service) as client:
        told = client.post("/v1/plan", json=asked).json()["problems"]
    assert f"job:{job.id}" in told[0]
    assert str(tmp_path) not in told[0]


def test_a_planner_that_is_closed_starts_no_process_more() -> None:
    planner = Planner(threads=1)
    planner.close()
    with pytest.raises(StoppedError, match="the service is ending"):
        planner.plan("generate", {})
    assert planner._process is None


def test_a_planner_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match="could not be told"):
        Planner(threads=1).plan("generate", {})
