"""Threads that share small work: all of them, from the start, and the same bits every time."""

import hashlib
import subprocess
import sys
from threading import Barrier

import pytest
import torch

from maisi.splitting.cpu.parallel import _pool, on_chunks


@pytest.mark.parametrize("threads", [2, 5, 9])
def test_all_threads_have_started_before_any_work(threads: int) -> None:
    """A thread that starts during the work would change the number of threads of the products beside it."""
    before = torch.get_num_threads()
    _pool.cache_clear()
    try:
        assert len(_pool(threads)._threads) == threads
        assert torch.get_num_threads() == threads
    finally:
        _pool.cache_clear()
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 5])
def test_a_thread_of_the_pool_works_alone(threads: int) -> None:
    """Threads that each start more threads share cores, and what a product then sums first is a matter of chance."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = Barrier(threads)

        def ask(chunk: int) -> int:
            together.wait()  # so that every thread answers once
            return torch.get_num_threads()

        with torch.no_grad():
            assert on_chunks(ask, range(threads), torch.device("cpu")) == [1] * threads
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


INTERRUPTED = """
from concurrent.futures import ThreadPoolExecutor
from maisi.splitting.cpu import parallel

class Interrupted(ThreadPoolExecutor):
    def submit(self, *args, **kwargs):
        if self._threads:
            raise KeyboardInterrupt
        return super().submit(*args, **kwargs)

parallel.ThreadPoolExecutor = Interrupted
try:
    parallel._pool(3)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_while_the_threads_start_ends_the_process() -> None:
    """The thread that had started waited for the others for ever, and the process for it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "interrupted\n"


def test_results_come_in_the_order_of_the_chunks() -> None:
    chunks = [torch.full((1000,), float(i)) for i in range(20)]
    with torch.no_grad():
        assert [int(x) for x in on_chunks(lambda x: x.mean(), chunks, torch.device("cpu"))] == list(range(20))


WIDE = """
import torch
from torch import nn
from maisi.splitting import SlabTensor
torch.set_num_threads(2)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv3d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), nn.Conv3d(64, 300, 1)).eval()
with torch.no_grad():
    y = network(SlabTensor.split(torch.randn(1, 32, 20, 20, 20), 1)).gather()
print(y.contiguous().numpy().tobytes().hex())
"""


def test_every_process_computes_the_same_bits() -> None:
    def run() -> str:
        done = subprocess.run([sys.executable, "-c", WIDE], capture_output=True, text=True, check=True)
        return hashlib.sha256(done.stdout.encode()).hexdigest()

    assert len({run() for _ in range(3)}) == 1
