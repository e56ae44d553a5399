"""A process that carries out jobs: `python -m maisi.service.worker`, started by the supervisor.

Its standard input is a line of settings, and then nothing until the supervisor is gone: then it ends at once, with all
that it has started, and the job is taken up again by the next service. It says `ready` when it can claim jobs.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import Field

from maisi.compute.compute import Compute, Device
from maisi.compute.threads import wait_asleep
from maisi.errors import ClaimLostError, InvalidRequestError, LostProcessError, StoppedError
from maisi.service.job import Job, Limits
from maisi.service.jobs import JobStore
from maisi.shapes import Frozen
from maisi.storage.owners import owner_mark

if TYPE_CHECKING:
    from maisi.runs.record import RunRecord

logger = logging.getLogger(__name__)

READY = "ready"
IDLE_S = 0.1
GIVES_WAY = 5  # the niceness of a worker at least, so that the web process answers while all cores compute
UNPLANNED = ("segment", "segment-file", "evaluate-labels")
"""Kinds of jobs that take no `compute.memory`: they work window by window."""


class WorkerSettings(Frozen):
    """The store that a worker serves, and what it computes with; `warm` is a bundle to load before the first job.

    With `ray`, the address of a cluster, the worker only follows jobs that are carried out there.
    """

    folder: Path
    limits: Limits = Limits()
    device: Device = "cpu"
    threads: int = Field(default=1, ge=1)
    warm: str | None = None
    ray: str | None = None


class Worker:
    """Claims jobs and carries them out until it is told to stop."""

    def __init__(self, store: JobStore, settings: WorkerSettings) -> None:
        from maisi.bundle.warm import WarmBundles
        from maisi.runs.carry_out import carry_out

        self.carried_out: Callable[..., RunRecord | None] = carry_out
        self.store, self.settings, self.mark = store, settings, owner_mark()
        self.bundles, self.stopping = WarmBundles(), threading.Event()

    def serve(self) -> None:
        """Carry out job after job; a job in work is given back when the worker is told to stop."""
        while not self.stopping.is_set():
            job = self.store.claim(self.mark)
            if job is None:
                self.stopping.wait(IDLE_S)
            else:
                self.carry(job)

    def warm_up(self) -> None:
        """Import what every job needs, and load a bundle."""
        import torch

        from maisi.pipelines.requests import GenerateRequest
        from maisi.pipelines.validate import compute_for, load_for
        from maisi.service.cluster import Cluster

        torch.set_num_threads(self.settings.threads)
        if self.settings.ray is not None:
            cluster = Cluster.joined(self.settings.ray, self.settings.threads)
            self.settings = self.settings.model_copy(update={"threads": cluster.threads})
            self.carried_out = cluster.carry_out
            return
        if self.settings.device != "cpu":  # float32 means float32 there too, by default it is three digits (TF32)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if self.settings.warm is not None:
            compute = compute_for(Compute(device=self.settings.device), None)
            with self.bundles.for_work():
                bundle = load_for(GenerateRequest(bundle=self.settings.warm, compute=compute))
                for name in bundle.names:
                    bundle.network(name)

    def carry(self, job: Job) -> None:
        """Carry out one job."""
        import torch

        from maisi.service.carry import carry, problem_of

        try:
            resolved = self.store.resolved(job.id, self.mark, lambda: resolve(job.kind, job.request, self.settings))
            torch.set_num_threads(int((resolved.get("compute") or {}).get("threads") or self.settings.threads))
            with self.bundles.for_work():
                ended = carry(self.store, job, self.mark, resolved, self.check_goes_on, self.carried_out)
            logger.info("job %s: %s", job.id, ended.state)
        except InvalidRequestError as error:
            self.store.finish(job.id, self.mark, "failed", problem_of(error, self.store.folder))
        except ClaimLostError:
            logger.warning("job %s is another worker's by now", job.id)
        except StoppedError:
            self.store.release(lambda worker: worker == self.mark, died=False)
        except LostProcessError as error:
            logger.warning("job %s: %s", job.id, error)
            self.store.release(lambda worker: worker == self.mark)

    def check_goes_on(self) -> None:
        """Raise `StoppedError` where the worker is to end."""
        if self.stopping.is_set():
            raise StoppedError("the service is shutting down")

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Have the worker end at its next step."""
        self.stopping.set()


def resolve(kind: str, request: Mapping[str, Any], settings: WorkerSettings) -> dict[str, Any]:
    """The request with what a worker computes with: its device, its threads and its share of the memory.

    Kept with the job, so that whoever takes it up computes the same. Raises `InvalidRequestError` for more than that.
    """
    from maisi.runs.tasks import task_named

    fields = task_named(kind.replace("-", " ")).request.model_fields
    resolved = dict(request)
    if "across" in fields:  # the workers of the service are all that there are
        resolved["across"] = {}
    if "compute" in fields:
        resolved["compute"] = _computing(kind, request.get("compute") or {}, settings)
    return resolved


def _computing(kind: str, asked: Mapping[str, Any], settings: WorkerSettings) -> dict[str, Any]:
    threads = asked.get("threads") or settings.threads
    if threads > settings.threads:
        raise InvalidRequestError(
            f"compute.threads: {threads} are asked for, a worker has {settings.threads}; accepted: up to as many"
        )
    compute = {**asked, "device": settings.device, "threads": threads}
    share = settings.limits.share
    if share is not None and settings.device == "cpu" and kind not in UNPLANNED and compute.get("memory") is None:
        compute["memory"] = share
    return compute


def main() -> None:
    """Serve as the settings on standard input say, until it closes or a SIGTERM comes."""
    settings = WorkerSettings.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s worker %(process)d: %(message)s")
    wait_asleep()
    if hasattr(os, "nice"):
        os.nice(max(0, GIVES_WAY - os.nice(0)))
    store = JobStore(settings.folder, settings.limits)
    worker = Worker(store, settings)
    signal.signal(signal.SIGTERM, worker.stop)
    worker.warm_up()
    print(READY, worker.mark, flush=True)  # noqa: T201 (to the supervisor)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on
    worker.serve()


def _end_with_supervisor() -> None:
    """End this process and all that it has started once nobody holds the other end of its standard input."""
    os.read(sys.stdin.fileno(), 1)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
