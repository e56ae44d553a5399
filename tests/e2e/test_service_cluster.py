"""Jobs of the service on a Ray cluster: the same results, told step by step, and cancelled within a step."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maisi.errors import InvalidRequestError
from maisi.runs.task import Watch
from maisi.service.carry import carry
from maisi.service.cluster import Cluster, follow, steps_of
from maisi.service.jobs import Job, JobStore


def small(bundle: Path, **more: Any) -> dict[str, Any]:
    quality = {"on_failure": "keep"}
    return {"bundle": str(bundle), "size": [16, 16, 16], "spacing": [6, 6, 6], "steps": 2, "quality": quality} | more


def test_a_run_elsewhere_tells_its_steps_its_files_and_its_record(tmp_path: Path, tiny_bundle: Path):
    told = list(steps_of("generate", small(tiny_bundle), str(tmp_path / "out"), False, 1))
    kinds = [kind for kind, _ in told]
    assert kinds[-1] == "record"
    assert "sample_000_ct.nii.gz" in told[-1][1]["outputs"]
    files = {Path(name).name for kind, names in told if kind == "files" for name in names}
    assert {"run.yaml", "sample_000_ct.nii.gz", "sample_000_labels.nii.gz"} <= files
    assert {stage[0] for kind, stage in told if kind == "stage"} >= {"load", "sample"}


def test_what_it_raises_is_raised_where_it_is_followed(tmp_path: Path, tiny_bundle: Path):
    ((kind, told),) = steps_of("generate", small(tiny_bundle, size=[17, 16, 16]), str(tmp_path / "out"), False, 1)
    with pytest.raises(InvalidRequestError, match="17"):
        follow(kind, told, Watch())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    found = Cluster.joined("local", threads=1000)  # as many as there are: for more Ray would wait without end
    assert 1 <= found.threads == max(int(node["Resources"]["CPU"]) for node in ray.nodes())
    yield Cluster(threads=1)
    ray.shutdown()


def claimed(store: JobStore, request: dict[str, Any]) -> Job:
    store.submit("generate", request)
    job = store.claim("w")
    assert job is not None
    return job


def test_a_job_on_the_cluster_is_done_or_cancelled_within_a_step(cluster: Cluster, tmp_path: Path, tiny_bundle: Path):
    store = JobStore(tmp_path)
    job = claimed(store, small(tiny_bundle))
    done = carry(store, job, "w", job.request, lambda: None, cluster.carry_out)
    assert (done.state, done.problem, done.samples_done) == ("done", None, 1)
    assert all(path.is_file() for path in store.artifacts(job.id))
    job = claimed(store, small(tiny_bundle, steps=1000))

    def cancel_once_it_samples() -> None:
        if store.get(job.id).stage == "sample":
            store.cancel(job.id)

    began = time.monotonic()
    cancelled = carry(store, job, "w", job.request, cancel_once_it_samples, cluster.carry_out)
    assert cancelled.state == "cancelled"
    assert cancelled.done < 1000
    assert time.monotonic() - began < 300
    assert not any(store.folder_of(job.id).glob("*"))
