"""Workers of the service: what they make, how they are stopped, and what is left when they are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi.errors import InvalidRequestError
from maisi.service.carry import carry
from maisi.service.jobs import Job, JobStore, Limits
from maisi.service.supervisor import Supervisor

pytestmark = pytest.mark.timeout(1800)
WAIT_S = 500.0  # a busy machine takes its time


def until(found: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def small(bundle: Path, **more: Any) -> dict[str, Any]:
    quality = {"on_failure": "keep"}
    return {"bundle": str(bundle), "size": [16, 16, 16], "spacing": [6, 6, 6], "steps": 2, "quality": quality} | more


def ended(store: JobStore, id: str) -> Job:
    return until(lambda: (job := store.get(id)).has_ended and job)


@contextmanager
def service(folder: Path, **limits: Any) -> Iterator[tuple[JobStore, Supervisor]]:
    store = JobStore(folder, Limits(**limits))
    supervisor = Supervisor(store, threads=1)
    supervisor.start()
    try:
        yield store, supervisor
    finally:
        supervisor.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[JobStore, Supervisor]]:
    with service(tmp_path_factory.mktemp("served") / "service") as both:
        yield both


def test_a_job_gives_the_files_of_the_command(served: tuple[JobStore, Supervisor], tiny_bundle: Path):
    store, _ = served
    job = ended(store, store.submit("generate", small(tiny_bundle, count=2)).id)
    assert (job.state, job.problem, job.samples_done, job.tries) == ("done", None, 2, 1)
    names = {
        f"sample_00{k}_{end}" for k in (0, 1) for end in ("ct.nii.gz", "labels.nii.gz", "preview.png", "quality.json")
    }
    assert set(job.artifacts) == names | {"run.yaml", "run.json"}
    assert all(path.is_file() for path in store.artifacts(job.id))
    told = [event.event for event in store.events(job.id)]
    assert told[-1] == "end"
    assert told.count("artifact") == 10
    assert {event.data["stage"] for event in store.events(job.id) if event.event == "stage"} >= {"load", "sample"}


def test_a_task_of_one_file_and_one_of_none_before(served: tuple[JobStore, Supervisor], tiny_bundle: Path):
    store, _ = served
    made = ended(store, store.submit("generate", small(tiny_bundle)).id)
    ct = str(store.folder_of(made.id) / "sample_000_ct.nii.gz")
    encoded = ended(store, store.submit("encode", {"bundle": str(tiny_bundle), "source": ct}).id)
    assert (encoded.problem, encoded.state) == (None, "done")
    assert "latent.safetensors" in encoded.artifacts
    latent = str(store.folder_of(encoded.id) / "latent.safetensors")
    decoded = ended(store, store.submit("decode", {"bundle": str(tiny_bundle), "source": latent}).id)
    assert (decoded.problem, decoded.state) == (None, "done")
    assert "volume.nii.gz" in decoded.artifacts


def test_a_request_that_cannot_be_carried_out_is_a_problem_in_the_words_of_the_command(
    served: tuple[JobStore, Supervisor], tiny_bundle: Path
):
    store, _ = served
    job = ended(store, store.submit("generate", small(tiny_bundle, size=[17, 16, 16])).id)
    assert job.state == "failed"
    assert job.problem is not None
    assert (job.problem.status, job.artifacts) == (422, ())
    assert "17" in job.problem.detail
    threads = ended(store, store.submit("generate", small(tiny_bundle, compute={"threads": 64})).id)
    assert threads.problem is not None
    assert "64 are asked for, a worker has 1" in threads.problem.detail


def test_a_running_job_is_cancelled_within_a_step(served: tuple[JobStore, Supervisor], tiny_bundle: Path):
    store, _ = served
    id = store.submit("generate", small(tiny_bundle, steps=1000)).id
    until(lambda: store.get(id).stage == "sample")
    store.cancel(id)
    began = time.monotonic()
    job = ended(store, id)
    assert time.monotonic() - began < 5
    assert (job.state, job.artifacts) == ("cancelled", ())
    assert not any(store.folder_of(id).glob(".*")) if store.folder_of(id).exists() else True
    again = ended(store, store.submit("generate", small(tiny_bundle)).id)
    assert again.state == "done"


def test_a_killed_worker_loses_no_sample_and_no_job(served: tuple[JobStore, Supervisor], tiny_bundle: Path):
    store, supervisor = served
    request = small(tiny_bundle, count=3, steps=5)
    id = store.submit("generate", request).id
    until(lambda: store.get(id).samples_done >= 1)
    first = {path: path.stat().st_mtime_ns for path in store.artifacts(id) if "sample_000" in path.name}
    assert supervisor.workers[0].process is not None
    os.kill(supervisor.workers[0].process.pid, signal.SIGKILL)
    job = ended(store, id)
    assert (job.state, job.tries, job.problem) == ("done", 2, None)
    assert job.samples_done == 3
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len([name for name in job.artifacts if name.endswith("ct.nii.gz")]) == 3
    assert not any(store.folder_of(id).glob(".*"))
    calm = ended(store, store.submit("generate", request).id)
    volumes = [[p.read_bytes() for p in store.artifacts(each.id) if p.name.endswith(".nii.gz")] for each in (job, calm)]
    assert volumes[0] == volumes[1]


def test_samples_of_many_requests_are_told_as_they_come(served: tuple[JobStore, Supervisor], tiny_bundle: Path):
    store, supervisor = served
    drawn = {"bundle": str(tiny_bundle), "count": 3, "size": [16, 16, 16], "spacing": [6, 6, 6], "steps": 2}
    id = store.submit("generate-many", {**drawn, "quality": {"on_failure": "keep"}}).id
    until(lambda: store.get(id).samples_done >= 1)
    assert supervisor.workers[0].process is not None
    os.kill(supervisor.workers[0].process.pid, signal.SIGKILL)
    job = ended(store, id)
    assert (job.state, job.problem, job.samples_done) == ("done", None, 3)
    assert {"manifest.jsonl", "summary.html", "run.json"} <= set(job.artifacts)
    assert len([name for name in job.artifacts if name.endswith("_ct.nii.gz")]) == 3


def test_a_job_ends_when_its_results_have_no_more_room(tmp_path: Path, tiny_bundle: Path):
    store = JobStore(tmp_path, Limits(disk=1))
    id = store.submit("generate", small(tiny_bundle, count=2)).id
    job = store.claim("w")
    assert job is not None
    failed = carry(store, job, "w", job.request, lambda: None)
    assert failed.problem is not None
    assert (failed.id, failed.state, failed.problem.status, failed.samples_done) == (id, "failed", 507, 1)
    assert "sample_000_ct.nii.gz" in failed.artifacts


def test_a_store_has_one_service(served: tuple[JobStore, Supervisor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maisi.service.supervisor.LOCK_S", 0.0)
    with pytest.raises(InvalidRequestError, match="another service uses"):
        Supervisor(served[0]).start()


SERVER = """
import sys, time
from pathlib import Path
from maisi.service.jobs import JobStore
from maisi.service.supervisor import Supervisor
assert "torch" not in sys.modules
Supervisor(JobStore(Path(sys.argv[1])), threads=1).start()
time.sleep(600)
"""


def test_a_killed_server_takes_its_workers_with_it_and_the_next_goes_on(tmp_path: Path, tiny_bundle: Path):
    store = JobStore(tmp_path / "service")
    id = store.submit("generate", small(tiny_bundle, count=3, steps=10)).id
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(store.folder)])
    until(lambda: store.get(id).samples_done >= 1)
    server.kill()
    server.wait()
    with service(tmp_path / "service") as (_, supervisor):
        job = ended(store, id)
        assert supervisor.is_ready
    assert (job.state, job.tries, job.samples_done) == ("done", 2, 3)


def test_a_service_that_ends_gives_its_job_to_the_next_and_has_kept_its_memory(tmp_path: Path, tiny_bundle: Path):
    with service(tmp_path, tries=1, memory="1500MB") as (store, supervisor):
        id = store.submit("generate", small(tiny_bundle, count=50, steps=10)).id
        until(lambda: store.get(id).samples_done >= 1)
    job = store.get(id)
    assert job.state == "queued"
    assert job.samples_done >= 1
    settings = yaml.safe_load((store.folder_of(id) / "run.yaml").read_text())
    assert settings["compute"]["memory"] == 1_500_000_000
    assert 10**8 < supervisor.peak_bytes < 1_500_000_000
