"""Threads that share small work: all of them, from the start, and the same bits every time."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from threading import Barrier

import pytest
import torch

from maisi.splitting.cpu import compiled
from maisi.splitting.cpu.norms import moments, normalise
from maisi.splitting.cpu.parallel import CHUNK_BYTES, _pool, on_chunks, shared_bytes
from maisi.splitting.norm import affine


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


@pytest.fixture
def threads_after() -> Iterator[None]:
    """Gives torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_after")
def test_chunks_are_cachefuls_and_enough_for_all_threads() -> None:
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        for total in (0, 1, 10**5, 3 * 10**6, 10**9):
            size = shared_bytes(total)
            assert 0 < size <= CHUNK_BYTES
            assert size == min(CHUNK_BYTES, max(size, total // (2 * threads)))


@pytest.mark.usefixtures("threads_after")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_normalises_to_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.randn(2, 24, 9, 40, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    ready = affine(moments(x, 8), None, None, 1e-5, 24, 5)

    def found(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return normalise([x[:, :, :2], x[:, :, 2:]], ready, 2, silu=True)

    one = found(1)
    assert all(torch.equal(one, found(threads)) for threads in (2, 3, 5))


@pytest.mark.usefixtures("threads_after")
@pytest.mark.skipif(compiled.instruction_set() == "", reason="no compiled kernel")
def test_any_number_of_threads_packs_the_same_weights() -> None:
    weight = torch.randn(144, 48, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def found(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return compiled.pack_weight(weight)

    assert all(torch.equal(found(1), found(threads)) for threads in (2, 3))
