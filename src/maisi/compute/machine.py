"""What this machine decides where a request leaves it open, and torch's names for what a request says."""

import os

import torch

from maisi.compute.compute import Compute
from maisi.errors import InvalidRequestError
from maisi.splitting.cpu.kernels import prefers_bfloat16


def fill_defaults(compute: Compute) -> Compute:
    """The same with all that it left open filled in, so that it can be repeated on another machine.

    The precision is the fastest that keeps a CT within 2 HU rms of float32, on a GPU float32; threads are those that
    torch works with (the last bits of sums depend on them); ranks are those that torchrun started. Raises
    `InvalidRequestError` for a device that is not there, and where the process has other threads or ranks than asked
    for: only a program may change those, see `cli.process`.
    """
    device_of(compute)
    threads, ranks = torch.get_num_threads(), num_ranks()
    if compute.threads not in (None, threads):
        raise InvalidRequestError(
            f"{compute.threads} threads are asked for, this process has {threads}; "
            f"accepted: threads={threads}, or torch.set_num_threads({compute.threads}) before"
        )
    if compute.ranks not in (None, ranks):
        raise InvalidRequestError(
            f"{compute.ranks} ranks are asked for, {ranks} started; "
            f"accepted: torchrun --nproc-per-node {compute.ranks} -m maisi ..."
        )
    settings = {"threads": threads, "ranks": ranks, "precision": compute.precision or fastest_precision(compute)}
    return compute.model_copy(update=settings)


def fastest_precision(compute: Compute) -> str:
    """The precision that a command takes where none is named."""
    return "bfloat16" if compute.device == "cpu" and prefers_bfloat16() else "float32"


def num_ranks() -> int:
    """Processes that torchrun started together, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def dtype_of(compute: Compute) -> torch.dtype:
    """The number format that networks compute in: float32 where none is named."""
    found: torch.dtype = getattr(torch, compute.precision or "float32")
    return found


def device_of(compute: Compute) -> torch.device:
    """Where networks compute; `cuda` is the rank's own GPU under torchrun.

    Raises `InvalidRequestError` for a GPU that is not there.
    """
    device = torch.device(compute.device)
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise InvalidRequestError(f"there is no device cuda:{index} here; accepted: {there}")
    return torch.device("cuda", index)


def multiply_exactly() -> None:
    """Let float32 mean float32 on a GPU too: by default torch convolves with three digits there (TF32)."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
