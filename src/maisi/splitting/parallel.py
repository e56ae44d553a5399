"""Small pointwise work in the cache, on as many threads as torch has.

torch starts and joins its threads for every operation; on a cacheful of numbers, and on a machine that is busy, that
costs more than the work. Here each thread takes whole chunks and joins once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
CHUNK_BYTES = 2 << 20  # stays in a core's cache


def scratch_bytes() -> int:
    """What the threads hold besides what they read and write."""
    return 2 * CHUNK_BYTES * torch.get_num_threads()


def on_chunks(work: Callable[[T], object], chunks: Sequence[T], device: torch.device) -> list:
    """Results of the work on every chunk, in order; without gradients and on the CPU the chunks share the threads."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(chunks) == 1 or torch.is_grad_enabled():
        return [work(chunk) for chunk in chunks]
    inference = torch.is_inference_mode_enabled()

    def quietly(chunk: T) -> object:
        with torch.inference_mode() if inference else torch.no_grad():
            return work(chunk)

    return list(_pool(threads).map(quietly, chunks))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each run torch on one core."""
    pool = ThreadPoolExecutor(threads, "maisi-chunks", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(_rest, range(threads)))  # starts them all, for setting their number of threads changes the default
    torch.set_num_threads(threads)
    return pool


def _rest(_: int) -> None:
    """Long enough that every thread gets one."""
    torch.ones(1 << 16).sum()
