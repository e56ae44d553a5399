"""Starts a few ranks of a function, each a process of its own."""

import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from maisi.cli import main

METHOD = "forkserver"  # as spawned ones, but what all import, which takes seconds, is there


def preload() -> None:
    mp.get_context(METHOD).set_forkserver_preload(["maisi.recipes.load", "maisi.runs.tasks.generate"])


def run_ranks(work: Callable[..., None], size: int, *args: Any) -> None:
    """Calls `work(rank, *args)` on that many ranks and raises what one of them raised."""
    preload()
    mp.start_processes(enter, (size, free_port(), work, args), nprocs=size, start_method=METHOD)


def run_each_to_its_end(work: Callable[..., None], size: int, *args: Any, timeout_s: float) -> list[int | None]:
    """The same, but a rank that dies does not end the others; gives exit codes, None for one that did not end."""
    return ended(enter, size, (work, args), timeout_s)


def ended(target: Callable[..., None], size: int, args: tuple[Any, ...], timeout_s: float) -> list[int | None]:
    """Exit codes of that many processes of `target(rank, size, port, *args)`, None for one that did not end."""
    preload()
    context, port = mp.get_context(METHOD), free_port()
    processes = [context.Process(target=target, args=(rank, size, port, *args)) for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def maisi_on_ranks(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What `torchrun --nproc-per-node SIZE -m maisi ...` does; the code is the first that is not 0."""
    words = [str(argument) for argument in arguments]
    with TemporaryDirectory() as folder:
        codes = ended(enter_command, size, (Path(folder), words), timeout_s=300)
        told = [[(Path(folder) / f"{rank}.{name}").read_text() for rank in range(size)] for name in ("out", "err")]
    return subprocess.CompletedProcess(words, next((code for code in codes if code != 0), 0), *map("".join, told))


def enter_command(rank: int, size: int, port: int, folder: Path, words: list[str]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    announce(rank, size, port)
    sys.exit(main(words))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enter(rank: int, size: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    announce(rank, size, port)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    work(rank, *args)
    if dist.is_initialized():
        dist.destroy_process_group()


def announce(rank: int, size: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
