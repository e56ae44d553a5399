"""Keeps the workers of a service going: starts them, takes up jobs of dead ones, keeps the memory, ends them.

Runs in a thread of the web process and imports no torch. One service at a time has a store: the lock on it is held by
the server and its workers together, so that a server that starts after a kill waits until the last old worker is gone.
"""

import fcntl
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from maisi.compute.compute import format_bytes
from maisi.compute.threads import NUM_THREADS, available_cores
from maisi.errors import InvalidRequestError, RunError
from maisi.service.job import Limits, Problem
from maisi.service.jobs import JobStore
from maisi.service.retention import retire
from maisi.service.worker import READY, WorkerSettings

logger = logging.getLogger(__name__)

LOCK = "service.lock"
LOCK_S = 15.0  # for the workers of a server that was killed to notice
WATCH_S, RETIRE_S, TROUBLE_S = 0.2, 60.0, 5.0
CANCEL_S = 10.0  # for a job to notice that it was cancelled, before its worker is killed
RESTART_S = 1.0, 30.0  # a worker that dies at its start is started again ever later
STOP_S = 10.0
IDLE_WORKER_BYTES = 600_000_000
"""What a worker with a small bundle holds (measured on Linux, CPU build)."""


def num_gpus() -> int:
    """GPUs that torch would see, found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([each for each in named.split(",") if each.strip() and each.strip() != "-1"])
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])


def devices() -> list[str]:
    """One name for each device: of every GPU, without any the processor."""
    return [f"cuda:{index}" for index in range(num_gpus())] or ["cpu"]


@dataclass
class Worker:
    """A worker as its supervisor sees it."""

    device: str
    process: "subprocess.Popen[bytes] | None" = None
    mark: str = ""  # known once it is ready
    started: float = 0.0
    failures: int = 0
    said: bytes = b""

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def resident_bytes(self) -> int:
        """Resident memory of the process and all that it started."""
        if self.process is None:
            return 0
        total = 0
        with suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += each.memory_info().rss
        return total


def check_memory(limits: Limits) -> None:
    """Raise `InvalidRequestError` where the memory of all workers is too little for that many."""
    least = IDLE_WORKER_BYTES * limits.workers
    if limits.memory is not None and limits.memory < least:
        raise InvalidRequestError(
            f"memory: {format_bytes(limits.memory)} are too little for the workers, of which there are "
            f"{limits.workers}; accepted: {format_bytes(least)} or more, or fewer workers"
        )


class Supervisor:
    """Workers on the jobs of a store; `store.limits` says how many, and how much memory they have together."""

    def __init__(
        self, store: JobStore, *, warm: str | None = None, threads: int | None = None, ray: str | None = None
    ) -> None:
        self.store, self.warm, self.ray = store, warm, ray
        names = devices()
        count = store.limits.workers
        self.threads = threads or max(1, available_cores() // count)
        self.workers = [Worker(names[index % len(names)]) for index in range(count)]
        self.peak_bytes = 0  # of all workers together, as far as it was seen
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: int | None = None
        self._retired = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether a worker waits for jobs or has one."""
        return any(worker.mark and worker.is_alive for worker in self.workers)

    def start(self) -> None:
        """Take the store, take up jobs that were running when the last service died, and start the workers.

        Raises `InvalidRequestError` where another service has the store, or the memory is too little for the workers.
        """
        check_memory(self.store.limits)
        self._lock = _locked(self.store.folder / LOCK)
        taken_up = self.store.release(lambda worker: True)
        if taken_up:
            logger.info("%d jobs of a service that was killed are taken up again", len(taken_up))
        for worker in self.workers:
            self._start(worker)
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = STOP_S) -> None:
        """End the workers; jobs in work wait for the next service, without what they have not finished."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for worker in self.workers:
            if worker.process is not None and worker.is_alive:
                worker.process.terminate()
        until = time.monotonic() + seconds
        for worker in self.workers:
            if worker.process is None:
                continue
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.1, until - time.monotonic()))
            _kill(worker)
            _close(worker)
        if self._lock is not None:
            self.store.release(lambda mark: True, died=False)
            os.close(self._lock)
            self._lock = None

    # Within -----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            try:
                self._look()
            except (RunError, OSError, sqlite3.Error) as error:  # a full disk: later it may be free again
                logger.error("%s", error)
                self._stopping.wait(TROUBLE_S)

    def _look(self) -> None:
        for worker in self.workers:
            self._read(worker)
            if not worker.is_alive:
                self._take_up(worker)
                self._restart(worker)
        self._end_cancelled()
        self._keep_memory()
        if time.monotonic() - self._retired > RETIRE_S:
            self._retired = time.monotonic()
            retire(self.store)

    def _start(self, worker: Worker) -> None:
        settings = WorkerSettings(
            folder=self.store.folder.absolute(),
            limits=self.store.limits,
            device="cpu" if worker.device == "cpu" else "cuda",
            threads=self.threads,
            warm=self.warm,
            ray=self.ray,
        )
        environment = os.environ | dict.fromkeys(NUM_THREADS, str(self.threads))
        if worker.device != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = _nth_gpu(int(worker.device.partition(":")[2]))
        assert self._lock is not None
        worker.process = subprocess.Popen(
            [sys.executable, "-m", "maisi.service.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=(self._lock,),  # the lock is free once the last worker is gone
            start_new_session=True,  # Ctrl-C is for the server, which ends them
        )
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        os.set_blocking(worker.process.stdout.fileno(), False)
        worker.mark, worker.said, worker.started = "", b"", time.monotonic()
        with suppress(BrokenPipeError):  # its end is noticed
            worker.process.stdin.write(settings.model_dump_json().encode() + b"\n")
            worker.process.stdin.flush()

    def _read(self, worker: Worker) -> None:
        """Learn the mark of a worker that has become ready."""
        if worker.mark or worker.process is None or worker.process.stdout is None:
            return
        worker.said += worker.process.stdout.read() or b""
        word, _, mark = worker.said.decode(errors="replace").partition("\n")[0].partition(" ")
        if word == READY and worker.said.endswith(b"\n"):
            worker.mark, worker.failures = mark, 0
            logger.info("worker %d is ready after %.1f s", worker.process.pid, time.monotonic() - worker.started)

    def _take_up(self, worker: Worker, problem: Problem | None = None) -> None:
        """Give the job of a dead worker to the next."""
        if not worker.mark:
            return
        for id in self.store.release(lambda mark: mark == worker.mark, problem):
            logger.warning("a worker died over job %s", id)
        worker.mark = ""

    def _restart(self, worker: Worker) -> None:
        """Start a dead worker again, once there is memory for it, and ever later where it dies at its start."""
        if worker.process is not None:
            code = worker.process.returncode
            logger.warning("worker %d ended with %s", worker.process.pid, code)
            _close(worker)
            worker.failures += 1
            worker.started = time.monotonic()
        wait = min(RESTART_S[1], RESTART_S[0] * 2.0 ** (worker.failures - 1)) if worker.failures > 1 else 0.0
        limit = self.store.limits.memory
        others = [other for other in self.workers if other is not worker and other.is_alive]
        is_room = limit is None or sum(o.resident_bytes() for o in others) + IDLE_WORKER_BYTES <= limit
        if time.monotonic() - worker.started >= wait and (is_room or not others):
            self._start(worker)

    def _end_cancelled(self) -> None:
        """Kill workers whose job was cancelled and does not end by itself: it is in one long step."""
        for id, mark in self.store.cancelling(CANCEL_S).items():
            for worker in self.workers:
                if worker.mark == mark:
                    logger.warning("job %s is cancelled by ending its worker", id)
                    _kill(worker)

    def _keep_memory(self) -> None:
        """Kill workers while all together hold more than they may: idle ones first, then the one furthest beyond."""
        held = {index: worker.resident_bytes() for index, worker in enumerate(self.workers) if worker.is_alive}
        total, limit = sum(held.values()), self.store.limits.memory
        self.peak_bytes = max(self.peak_bytes, total)
        if limit is None or total <= limit:
            return
        grants, marks = self.store.grants(), [worker.mark for worker in self.workers]
        index = max(held, key=lambda each: (marks[each] not in grants, held[each] - grants.get(marks[each], 0)))
        worker = self.workers[index]
        logger.warning("workers hold %s of %s: one is ended", format_bytes(total), format_bytes(limit))
        _kill(worker)
        self._take_up(worker, _too_much_memory(held[index], limit))


def _too_much_memory(held: int, limit: int) -> Problem:
    return Problem(
        title="Out of memory",
        status=500,
        detail=f"the job held {format_bytes(held)}, and all jobs of this service may hold {format_bytes(limit)}",
        accepted="a smaller size, or compute.memory",
    )


def _nth_gpu(index: int) -> str:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(index) if named is None else [each.strip() for each in named.split(",") if each.strip()][index]


def _locked(path: Path) -> int:
    """A lock on a file that is held until the last process that has inherited it is gone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise InvalidRequestError(
                    f"another service uses {path.parent}; accepted: another folder, or end that one first"
                ) from None
            time.sleep(WATCH_S)
        else:
            return descriptor


def _kill(worker: Worker) -> None:
    """End a worker and all that it has started."""
    if worker.process is None:
        return
    with suppress(psutil.Error):
        for child in psutil.Process(worker.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    worker.process.kill()
    worker.process.wait()


def _close(worker: Worker) -> None:
    if worker.process is not None:
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
    worker.process = None
