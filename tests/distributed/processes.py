"""Starts a few ranks of a function, each a process of its own."""

import os
import socket
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


METHOD = "forkserver"  # as spawned ones, but what all import, which takes seconds, is there


def preload() -> None:
    mp.get_context(METHOD).set_forkserver_preload(["maisi.training.learner"])


def run_ranks(work: Callable[..., None], size: int, *args: Any) -> None:
    """Calls `work(rank, *args)` on that many ranks and raises what one of them raised."""
    preload()
    mp.start_processes(enter, (size, free_port(), work, args), nprocs=size, start_method=METHOD)


def run_each_to_its_end(work: Callable[..., None], size: int, *args: Any, timeout_s: float) -> list[int | None]:
    """The same, but a rank that dies does not end the others; gives exit codes, None for one that did not end."""
    preload()
    context, port = mp.get_context(METHOD), free_port()
    processes = [context.Process(target=enter, args=(rank, size, port, work, args)) for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enter(rank: int, size: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    work(rank, *args)
    if dist.is_initialized():
        dist.destroy_process_group()
