"""Small pointwise work in the cache, on as many threads as torch has.

torch starts and joins its threads for every operation; on a cacheful of numbers, and on a machine that is busy, that
costs more than the work. Here each thread takes whole chunks and joins once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
CHUNK_BYTES = 2 << 20  # stays in a core's cache
SMALL_BYTES = 512 << 10  # of a chunk that takes little longer than to hand it over


def scratch_bytes() -> int:
    """What the threads hold besides what they read and write."""
    return 2 * CHUNK_BYTES * torch.get_num_threads()


def shared_bytes(total: int) -> int:
    """The size of chunks that so many bytes are cut into: at most a cacheful, and enough chunks for all threads."""
    return min(CHUNK_BYTES, max(SMALL_BYTES, -(-total // (2 * torch.get_num_threads()))))


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
    pool = ThreadPoolExecutor(threads, "maisi-chunks", initializer=_take_one_core)
    together = Barrier(threads)
    # All start now: one that starts later would set the number of threads of the process too, and with it last bits.
    try:
        list(pool.map(lambda _: together.wait(), range(threads)))
    except BaseException:  # an interrupt: a thread that waits for one that will not come must not wait
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    torch.set_num_threads(threads)
    return pool


def _take_one_core() -> None:
    """Lets torch in this thread work alone.

    Asking comes first: the first question in a thread takes over the process's number, also if the thread had set one.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
