"""The store of the service's jobs: each once, none lost, all told."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from maisi.errors import (
    ClaimLostError,
    InvalidPlanError,
    JobConflictError,
    QueueFullError,
    QuotaError,
    UnknownJobError,
)
from maisi.service.jobs import JobStore, Limits, Problem

PROBLEM = Problem(title="Bad", status=422, detail="size 17 is no multiple of 4")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "service")


def artifact(store: JobStore, id: str, name: str, text: str = "x") -> Path:
    path = store.folder_of(id) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_job_is_told_from_its_queue_to_its_end(store: JobStore):
    job = store.submit("generate", {"count": 2})
    assert (job.state, job.request, job.tries, job.has_ended) == ("queued", {"count": 2}, 0, False)
    claimed = store.claim("w")
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.tries) == (job.id, "running", 1)
    store.progress(job.id, "w", "sample", 3, 10, 4.5)
    store.published(job.id, "w", [artifact(store, job.id, "sample_000_ct.nii.gz")])
    told = store.get(job.id)
    assert (told.stage, told.done, told.total, told.samples_done, told.seconds_left) == ("sample", 3, 10, 1, 4.5)
    done = store.finish(job.id, "w", "done", files=[artifact(store, job.id, "run.json")])
    assert done.artifacts == ("run.json", "sample_000_ct.nii.gz")
    assert done.has_ended
    assert done.seconds_left is None
    assert store.artifacts(job.id) == [store.folder_of(job.id) / name for name in done.artifacts]
    events = store.events(job.id)
    assert [(e.number, e.event) for e in events] == [(1, "stage"), (2, "artifact"), (3, "artifact"), (4, "end")]
    assert events[0].data == {"stage": "sample", "done": 3, "total": 10, "sample": 0, "seconds_left": 4.5}
    assert events[-1].data == done.model_dump(mode="json")
    assert store.events(job.id, after=3) == events[3:]


def test_of_each_stage_the_newest_step_is_kept_under_a_new_number(store: JobStore):
    id = store.submit("generate", {}).id
    store.claim("w")
    for step in range(5):
        store.progress(id, "w", "sample", step, 5)
    store.progress(id, "w", "decode", 1, 1)
    assert [(e.number, e.data["stage"], e.data["done"]) for e in store.events(id)] == [
        (5, "sample", 4),
        (6, "decode", 1),
    ]


def test_jobs_are_claimed_in_their_order_each_by_one_worker(tmp_path: Path):
    store = JobStore(tmp_path, Limits(queued=200))
    ids = [store.submit("generate", {"seed": seed}).id for seed in range(40)]
    claimed: dict[str, list[str]] = {f"w{k}": [] for k in range(4)}

    def work(name: str) -> None:
        own = JobStore(tmp_path)
        while (job := own.claim(name)) is not None:
            claimed[name].append(job.id)
        own.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for each in claimed.values() for id in each) == sorted(ids)
    assert all(each == sorted(each, key=ids.index) for each in claimed.values())


def test_a_job_whose_worker_died_is_taken_up_before_later_ones(store: JobStore):
    first, second = store.submit("generate", {}).id, store.submit("generate", {}).id
    store.claim("dead")
    assert store.release(lambda worker: worker == "dead") == [first]
    again = store.claim("w")
    assert again is not None
    assert (again.id, again.tries) == (first, 2)
    assert store.get(second).state == "queued"


def test_a_worker_that_lost_its_claim_can_write_nothing(store: JobStore):
    id = store.submit("generate", {}).id
    store.claim("slow")
    store.release(lambda worker: True)
    store.claim("w")
    for write in (
        lambda: store.progress(id, "slow", "sample", 1, 2),
        lambda: store.published(id, "slow", []),
        lambda: store.finish(id, "slow", "done"),
        lambda: store.is_cancelled(id, "slow"),
    ):
        with pytest.raises(ClaimLostError):
            write()
    assert store.get(id).state == "running"


def test_a_job_that_kills_its_workers_fails_but_not_one_that_gets_on(tmp_path: Path):
    store = JobStore(tmp_path, Limits(tries=2))
    bad, good = store.submit("generate", {}).id, store.submit("generate", {}).id
    for _ in range(2):
        store.claim("w")
        store.release(lambda worker: True)
    failed = store.get(bad)
    assert (failed.state, failed.tries) == ("failed", 2)
    assert failed.problem is not None
    assert "2 workers died" in failed.problem.detail
    for k in range(4):
        store.claim("w")
        store.published(good, "w", [artifact(store, good, f"{k}.png")])
        store.release(lambda worker: True)
    assert (store.get(good).state, store.get(good).tries) == ("queued", 4)


def test_records_of_a_run_that_has_made_nothing_yet_do_not_count_as_getting_on(tmp_path: Path):
    store = JobStore(tmp_path, Limits(tries=3))
    id = store.submit("generate-many", {}).id
    for _ in range(3):
        store.claim("w")
        store.published(id, "w", [artifact(store, id, "run.yaml")], is_sample=False)
        store.release(lambda worker: True)
    assert store.get(id).state == "failed"


def test_a_worker_that_was_stopped_has_not_died(tmp_path: Path):
    store = JobStore(tmp_path, Limits(tries=1))
    id = store.submit("generate", {}).id
    store.claim("w")
    store.release(lambda worker: True, died=False)
    assert store.get(id).state == "queued"


def test_a_known_cause_of_death_ends_the_job(store: JobStore):
    id = store.submit("generate", {}).id
    store.claim("w")
    store.release(lambda worker: True, PROBLEM)
    assert (store.get(id).state, store.get(id).problem) == ("failed", PROBLEM)


def test_cancelling(store: JobStore):
    waiting, runs = store.submit("generate", {}).id, None
    store.cancel(waiting)
    assert store.get(waiting).state == "cancelled"
    runs = store.submit("generate", {}).id
    store.claim("w")
    assert not store.is_cancelled(runs, "w")
    assert store.cancel(runs).state == "running"
    assert store.is_cancelled(runs, "w")
    assert store.cancelling(60) == {}
    assert store.cancelling(-1) == {runs: "w"}
    store.finish(runs, "w", "cancelled")
    assert store.cancel(runs).state == "cancelled"  # twice is once


def test_a_cancelled_job_whose_worker_died_is_not_taken_up(store: JobStore):
    id = store.submit("generate", {}).id
    store.claim("w")
    store.cancel(id)
    store.release(lambda worker: True)
    assert store.get(id).state == "cancelled"
    assert store.claim("w") is None


def test_a_full_queue_says_when_to_come_again(tmp_path: Path):
    store = JobStore(tmp_path, Limits(queued=2))
    store.submit("generate", {})
    store.submit("generate", {})
    with pytest.raises(QueueFullError, match="2 jobs wait") as refused:
        store.submit("generate", {})
    assert 1 <= refused.value.seconds <= 3600
    store.claim("w")
    assert store.submit("generate", {}).state == "queued"


def test_a_key_stands_for_one_job(store: JobStore):
    job = store.submit("generate", {"seed": 1}, key="a")
    assert store.submit("generate", {"seed": 1}, key="a").id == job.id
    assert store.submit("generate", {"seed": 1}, key="b").id != job.id
    with pytest.raises(JobConflictError, match="another request"):
        store.submit("generate", {"seed": 2}, key="a")
    assert len(store.jobs()) == 2


def test_a_page_of_jobs_follows_the_one_before(store: JobStore):
    ids = [store.submit("generate", {"seed": k}).id for k in range(5)]
    store.claim("w")
    assert [job.id for job in store.jobs(limit=2)] == [ids[4], ids[3]]
    assert [job.id for job in store.jobs(limit=2, before=ids[3])] == [ids[2], ids[1]]
    assert [job.id for job in store.jobs(state="running")] == [ids[0]]
    assert store.counts() == {"queued": 4, "running": 1, "done": 0, "failed": 0, "cancelled": 0}


def test_an_unknown_job_is_refused(store: JobStore):
    for ask in (store.get, store.cancel, store.events, store.remove, store.artifacts):
        with pytest.raises(UnknownJobError, match="no job 'nix'"):
            ask("nix")


def test_memory_is_shared_out_and_nobody_overtakes(tmp_path: Path):
    store = JobStore(tmp_path, Limits(memory="8GB", workers=2))
    with pytest.raises(InvalidPlanError, match=r"more than the workers .* up to 8"):
        store.submit("generate", {"compute": {"memory": "9GB"}})
    usual = store.submit("generate", {}).id
    large = store.submit("generate", {"compute": {"memory": "6GB"}}).id
    store.submit("generate", {})
    assert store.claim("a") == store.get(usual)
    assert store.claim("b") is None  # 4 GB are in use, and the last does not overtake
    store.finish(usual, "a", "done")
    assert store.claim("b") == store.get(large)
    assert store.claim("a") is None


def test_a_request_is_resolved_once(store: JobStore):
    id = store.submit("generate", {"count": 1}).id
    store.claim("w")
    assert store.resolved(id, "w", lambda: {"threads": 2}) == {"threads": 2}
    store.release(lambda worker: True)
    store.claim("other")
    assert store.resolved(id, "other", lambda: {"threads": 7}) == {"threads": 2}
    assert store.get(id).request == {"count": 1}


def test_results_beyond_the_quota_are_refused_until_some_are_removed(tmp_path: Path):
    store = JobStore(tmp_path, Limits(disk=1000))
    id = store.submit("generate", {}).id
    store.claim("w")
    store.finish(id, "w", "done", files=[artifact(store, id, "ct.nii.gz", "x" * 1000)])
    assert store.bytes_used() == 1000
    with pytest.raises(QuotaError, match=r"1\.0 KB of 1\.0 KB"):
        store.submit("generate", {})
    store.remove(id)
    assert not store.folder_of(id).exists()
    assert store.submit("generate", {}).state == "queued"


def test_only_an_ended_job_is_removed(store: JobStore):
    id = store.submit("generate", {}).id
    with pytest.raises(JobConflictError, match="cancel it first"):
        store.remove(id)


def test_what_was_answered_survives_a_kill(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from maisi.service.jobs import JobStore\n"
        "store = JobStore(Path(sys.argv[1]))\n"
        "for k in range(20): print(store.submit('generate', {'seed': k}).id, flush=True)\n"
        "store.claim('dead'); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    store = JobStore(tmp_path)
    assert [job.id for job in store.jobs()][::-1] == ended.stdout.split()
    assert store.release(lambda worker: True) == ended.stdout.split()[:1]


def test_the_store_needs_no_torch():
    code = "import sys; import maisi.service.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_threads_that_come_and_go_leave_no_files_open(store: JobStore):
    def ask() -> None:
        store.counts()

    def open_after(threads: int) -> int:
        for _ in range(threads):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        return sum(Path(file.path).parent == store.folder.absolute() for file in psutil.Process().open_files())

    few = open_after(2)
    assert few > 0
    assert open_after(20) == few
    store.close()
    assert open_after(0) == 0
