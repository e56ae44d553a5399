"""Jobs on a Ray cluster: the worker that has claimed one follows it from here. Results go to a folder that all see."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maisi.bundle.warm import WarmBundles
from maisi.errors import LostProcessError
from maisi.runs.carry_out import carry_out
from maisi.runs.ray_cluster import join, most_cores
from maisi.runs.record import RunRecord
from maisi.runs.task import Task, Watch
from maisi.runs.tasks import task_named

Step = tuple[str, Any]


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to; a job takes `threads` cores of one machine."""

    threads: int

    @classmethod
    def joined(cls, address: str, threads: int) -> "Cluster":
        """The cluster at an address, "local" for one that is started here, with no more threads than a machine has.

        Raises as `runs.ray_cluster.join`.
        """
        ray, _ = join(address)
        return cls(min(threads, most_cores(ray)))

    def carry_out(
        self, task: Task[Any], request: BaseModel, out: Path, *, overwrite: bool, watch: Watch
    ) -> RunRecord | None:
        """As `runs.carry_out`, in a process of the cluster; that ends where `watch` raises.

        Raises `LostProcessError` where the process is gone.
        """
        import ray

        remote: Any = ray.remote(num_cpus=self.threads, max_retries=0)(steps_of)
        settings = request.model_dump(mode="json")
        steps = remote.options(num_returns="streaming").remote(task.name, settings, str(out), overwrite, self.threads)
        try:
            for step in steps:
                kind, told = ray.get(step)
                if kind == "record":
                    return RunRecord.model_validate(told)
                follow(kind, told, watch)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise LostProcessError("the process on the cluster ended (out of memory, or killed)") from error
        except BaseException:
            ray.cancel(steps, force=True)
            raise
        raise LostProcessError("the process on the cluster ended without a record")


@cache
def _bundles() -> WarmBundles:
    """Those of this process, which Ray uses again for the next job."""
    return WarmBundles()


def follow(kind: str, told: Any, watch: Watch) -> None:
    """Tell a watch of a step, or raise what the run has raised."""
    if kind == "stage":
        watch.on_stage(*told)
    elif kind == "files":
        watch.on_files([Path(name) for name in told])
    else:
        raise told


def steps_of(name: str, settings: dict[str, Any], out: str, overwrite: bool, threads: int) -> Iterator[Step]:
    """Carry out a task, and give what it tells as it comes: stages, files in place, then its record or its error."""
    import torch

    told: queue.Queue[Step] = queue.Queue()
    task = task_named(name)

    def work() -> None:
        watch = Watch(
            lambda stage, done, total: told.put(("stage", (stage, done, total))),
            lambda files: told.put(("files", [str(file) for file in files])),
        )
        try:
            torch.set_num_threads(threads)  # OpenMP's number is that of a thread
            request = task.request.model_validate(settings)
            with _bundles().for_work():
                record = carry_out(task, request, Path(out), overwrite=overwrite, watch=watch)
            assert record is not None
            told.put(("record", record.model_dump(mode="json")))
        except Exception as error:  # noqa: BLE001 (raised again by the process that follows)
            told.put(("error", error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        step = told.get()
        yield step
        if step[0] in ("record", "error"):
            return
