"""One piece of work on many items: here, over processes, or over a Ray cluster; what fails stops no other item."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import psutil

from maisi.compute.across import Across
from maisi.compute.threads import NUM_THREADS, available_cores
from maisi.errors import MaisiError
from maisi.runs.ray_cluster import connected

_NO_MEMORY = "can't allocate memory"  # in what torch raises

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of the item of that place: its result, or one line of what went wrong."""

    place: int
    result: Result | None = None
    error: str | None = None


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], across: Across, threads: int | None = None
) -> Iterator[Outcome[Result]]:
    """Outcomes as they come; `work` is a function of a module, items and results are plain data.

    Each process besides this one computes with `threads`, without it with its share of the cores.

    A `MaisiError` is the outcome of its item, and so is a lack of memory or the end of a process that was killed.
    Anything else that is raised is a mistake of ours, and ends all.
    """
    if across.ray is not None:
        yield from _over_ray(work, items, across.ray, threads or 1)
    elif across.workers == 1 or len(items) < 2:
        for place, item in enumerate(items):
            yield _carried_out(work, item, place)
    else:
        count = min(across.workers, len(items))
        yield from _over_processes(work, items, count, threads or max(1, available_cores() // count))


def _carried_out(work: Callable[[Item], Result], item: Item, place: int) -> Outcome[Result]:
    try:
        return Outcome(place, work(item))
    except MaisiError as error:
        return Outcome(place, error=str(error))
    except MemoryError as error:
        return Outcome(place, error=f"there is not enough memory for it: {error}")
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        return Outcome(place, error="there is not enough memory for it")


# Processes ------------------------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    place: int | None = None  # of the item that it works on


def _over_processes(
    work: Callable[[Any], Any], items: Sequence[Any], count: int, threads: int
) -> Iterator[Outcome[Any]]:
    """One item at a time goes to each worker, so that the end of a worker is the outcome of one item alone."""
    waiting = list(enumerate(items))[::-1]
    workers = [_started(work, threads) for _ in range(count)]
    try:
        while waiting or any(worker.place is not None for worker in workers):
            for index, worker in enumerate(workers):
                if worker.place is None and waiting:
                    if not worker.process.is_alive():
                        workers[index] = worker = _started(work, threads)
                    worker.place, item = waiting.pop()
                    with suppress(BrokenPipeError):  # its end is noticed below
                        worker.connection.send((worker.place, item))
            busy = {worker.connection: worker for worker in workers if worker.place is not None}
            for connection in wait(list(busy)):
                yield _received(busy[connection])  # type: ignore[index]
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _received(worker: _Worker) -> Outcome[Any]:
    place, worker.place = worker.place, None
    assert place is not None
    try:
        found = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return Outcome(place, error=f"the process that worked on it ended {how} (out of memory, or killed)")
    if isinstance(found, BaseException):
        raise found
    assert isinstance(found, Outcome)
    return found


def _started(work: Callable[[Any], Any], threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(work, there, threads), daemon=True)
    before = {name: os.environ.get(name) for name in NUM_THREADS}
    os.environ.update(dict.fromkeys(NUM_THREADS, str(threads)))  # read when the process imports its libraries
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    there.close()
    return _Worker(process, here)


def _serve(work: Callable[[Any], Any], connection: Connection, threads: int) -> None:
    """What a worker does until nobody asks any more."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        while True:
            place, item = connection.recv()
            try:
                found: Any = _carried_out(work, item, place)
            except Exception as error:  # noqa: BLE001 (raised again by the process that asked)
                found = error
            connection.send(found)


def _end_with_parent() -> None:
    """Ends this process, and what it has started, once the one that asks is gone: nobody writes behind a later run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        os._exit(1)


# Ray ------------------------------------------------------------------------------------------------------------------


def _over_ray(work: Callable[[Any], Any], items: Sequence[Any], address: str, threads: int) -> Iterator[Outcome[Any]]:
    """Outcomes of a Ray cluster, so many cores an item."""
    with connected(address, threads) as ray:
        remote: Any = ray.remote(num_cpus=threads, max_retries=0)(_on_cluster)
        running = {remote.remote(work, item, place, threads): place for place, item in enumerate(items)}
        while running:
            (ready, *_), _rest = ray.wait(list(running))
            place = running.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.WorkerCrashedError:
                yield Outcome(place, error="the process that worked on it ended (out of memory, or killed)")
            except ray.exceptions.OutOfMemoryError as error:
                yield Outcome(place, error=f"the process that worked on it ran out of memory: {error}")


def _on_cluster(work: Callable[[Any], Any], item: Any, place: int, threads: int) -> Outcome[Any]:
    """The outcome of an item in a process of a cluster, with the threads that it was given cores for."""
    import torch

    torch.set_num_threads(threads)
    return _carried_out(work, item, place)
