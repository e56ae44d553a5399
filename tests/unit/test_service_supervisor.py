"""What the supervisor of the service decides: whom it ends for memory, which jobs it keeps, how long a job takes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from maisi.errors import InvalidRequestError
from maisi.service.job import Job, Limits
from maisi.service.jobs import JobStore
from maisi.service.pace import Pace
from maisi.service.retention import retire, too_many
from maisi.service.supervisor import Supervisor, Worker, devices
from maisi.service.worker import WorkerSettings, resolve

NOW = datetime(2026, 11, 29, tzinfo=UTC)


class Holding(Worker):
    """A worker that says that it holds so much, and does nothing."""

    holds = 0

    def resident_bytes(self) -> int:
        return self.holds


@contextmanager
def workers(held: dict[str, int]) -> Iterator[list[Worker]]:
    found: list[Worker] = []
    for mark, num_bytes in held.items():
        worker = Holding("cpu", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), mark)
        worker.holds = num_bytes
        found.append(worker)
    try:
        yield found
    finally:
        for worker in found:
            assert worker.process is not None
            worker.process.kill()
            worker.process.wait()


def supervised(folder: Path, found: list[Worker]) -> Supervisor:
    store = JobStore(folder, Limits(memory="4GB", workers=len(found)))
    supervisor = Supervisor(store, threads=1)
    supervisor.workers = found
    return supervisor


def test_within_the_memory_nobody_is_ended(tmp_path: Path):
    with workers({"a": 2 * 10**9, "b": 10**9}) as found:
        supervisor = supervised(tmp_path, found)
        supervisor._keep_memory()
        assert [worker.is_alive for worker in found] == [True, True]
        assert supervisor.peak_bytes == 3 * 10**9


def test_beyond_it_an_idle_worker_goes_first(tmp_path: Path):
    with workers({"busy": 4 * 10**9, "idle": 10**9}) as found:
        supervisor = supervised(tmp_path, found)
        id = supervisor.store.submit("generate", {}).id
        supervisor.store.claim("busy")
        supervisor._keep_memory()
        assert [worker.is_alive for worker in found] == [True, False]
        assert supervisor.store.get(id).state == "running"


def test_then_the_one_furthest_beyond_its_grant_and_its_job_fails(tmp_path: Path):
    with workers({"planned": 24 * 10**8, "other": 2 * 10**9}) as found:
        supervisor = supervised(tmp_path, found)
        planned = supervisor.store.submit("generate", {"compute": {"memory": 25 * 10**8}}).id
        other = supervisor.store.submit("segment", {"compute": {"memory": 15 * 10**8}}).id
        supervisor.store.claim("planned")
        supervisor.store.claim("other")
        supervisor._keep_memory()
        assert [worker.is_alive for worker in found] == [True, False]
        assert supervisor.store.get(planned).state == "running"
        failed = supervisor.store.get(other)
        assert failed.problem is not None
        assert (failed.state, failed.problem.title) == ("failed", "Out of memory")


def test_memory_that_no_worker_fits_in_is_refused(tmp_path: Path):
    with pytest.raises(InvalidRequestError, match=r"600\.0 MB or more"):
        Supervisor(JobStore(tmp_path, Limits(memory="100MB"))).start()


def test_there_is_a_worker_for_each_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert devices() == ["cuda:0", "cuda:1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices() == ["cpu"]


def test_a_request_is_resolved_to_what_a_worker_has(tmp_path: Path):
    settings = WorkerSettings(folder=tmp_path, limits=Limits(memory="8GB", workers=2), threads=3)
    assert resolve("generate", {"count": 2}, settings) == {
        "count": 2,
        "compute": {"device": "cpu", "threads": 3, "memory": 4 * 10**9},
    }
    asked = {"compute": {"memory": 10**9, "threads": 1, "device": "cuda:7"}}
    assert resolve("inpaint", asked, settings)["compute"] == {"memory": 10**9, "threads": 1, "device": "cpu"}
    assert resolve("segment", {}, settings)["compute"] == {"device": "cpu", "threads": 3}
    assert resolve("export", {"to": "msd"}, settings) == {"to": "msd"}
    assert resolve("generate-many", {"across": {"workers": 9}}, settings)["across"] == {}


def job(days: float) -> Job:
    then = NOW - timedelta(days=days)
    return Job(id=f"{days}", kind="generate", request={}, state="done", created=then, finished=then)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(), ["9", "5", "1"]),
        (Limits(keep_days=6), ["5", "1"]),
        (Limits(keep_jobs=1), ["1"]),
        (Limits(keep_bytes=250), ["5", "1"]),
        (Limits(keep_bytes=1), ["1"]),
    ],
)
def test_what_is_kept(limits: Limits, kept: list[str]):
    ended = [(job(days), 100) for days in (9, 5, 1)]
    gone = [each.id for each in too_many(ended, limits, NOW)]
    assert [each.id for each, _ in ended if each.id not in gone] == kept


def test_results_that_a_waiting_job_reads_and_folders_in_work_are_kept(tmp_path: Path):
    store = JobStore(tmp_path, Limits(keep_days=0))
    ids = [store.submit("generate", {}).id for _ in range(3)]
    for id in ids[:2]:
        store.claim("w")
        store.folder_of(id).mkdir()
        store.finish(id, "w", "done")
    in_work, stray = store.folder_of(f".{ids[2]}.partial-mark"), store.folder_of("stray")
    in_work.mkdir()
    stray.mkdir()
    store.submit("encode", {"source": str(store.folder_of(ids[0]) / "sample_000_ct.nii.gz")})
    assert retire(store, datetime.now(UTC) + timedelta(seconds=1)) == [ids[1]]
    assert store.folder_of(ids[0]).is_dir()
    assert in_work.is_dir()
    assert not stray.exists()


def test_time_left_is_of_this_stage_then_of_the_samples_that_follow():
    clock = iter([0.0, 0.0, 2.0, 10.0, 10.0, 14.0])
    pace = Pace(3, lambda: next(clock))
    assert pace.seconds_left("sample", 0, 4) is None
    assert pace.seconds_left("sample", 1, 4) == 6 + 2 * (2 + 6)
    pace.finished()
    assert pace.seconds_left("sample", 0, 4) == 20
    assert pace.seconds_left("sample", 2, 4) == 16
