"""What the C library does with the memory of freed slabs (glibc; elsewhere nothing is changed)."""

import contextlib
import ctypes
from collections.abc import Iterator
from contextvars import ContextVar

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
USUAL_MAPPINGS = 65536
LARGEST_BLOCK = 32 << 20  # up to which glibc would reuse memory by itself after a while
SMALL_BLOCK = 1 << 18
LARGEST_HOLE = 1 << 40
UNLIMITED = (1 << 31) - 1


_kept: ContextVar[bool | None] = ContextVar("freed slabs are kept", default=None)


def are_given_back() -> bool:
    """Whether this is within `freed_slabs(kept=False)`."""
    return _kept.get() is False


@contextlib.contextmanager
def freed_slabs(kept: bool) -> Iterator[None]:
    """Within, freed slabs are kept for the next ones, or given back to the system at once.

    Fresh memory has to be cleared by the system, which takes a fifth of the time of a decode. But kept memory has
    holes, a sixth of the peak and more, so a planned run gives it back. Around a loop it also keeps from call to call.
    """
    libc, before = _glibc(), _kept.get()
    if libc is None or before is kept:
        yield
        return
    _set_thresholds(libc, kept)
    token = _kept.set(kept)
    try:
        with contextlib.nullcontext() if kept else _holes_filled(libc):
            yield
    finally:
        _kept.reset(token)
        if before is None:
            libc.mallopt(MMAP_MAX, USUAL_MAPPINGS)
            libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_BLOCK if kept else SMALL_BLOCK)
            libc.malloc_trim(0)
        else:
            _set_thresholds(libc, before)


def _set_thresholds(libc: ctypes.CDLL, kept: bool) -> None:
    """How `malloc` and `free` treat slabs."""
    libc.mallopt(MMAP_MAX, 0 if kept else USUAL_MAPPINGS)
    libc.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK if kept else SMALL_BLOCK)
    libc.mallopt(TRIM_THRESHOLD, UNLIMITED if kept else SMALL_BLOCK)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt, libc.malloc_trim  # noqa: B018 (asks whether they are there)
    except (OSError, AttributeError, TypeError):  # TypeError on Windows
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@contextlib.contextmanager
def _holes_filled(libc: ctypes.CDLL) -> Iterator[None]:
    """Within, no block of `SMALL_BLOCK` or more comes from a hole that earlier work left in the heap.

    glibc prefers holes to mappings, and what is freed into them stays resident. So they are taken, from the largest to
    the smallest, by blocks that nobody writes to and that therefore cost no memory.
    """
    libc.malloc_trim(0)
    if not hasattr(libc, "mallinfo2"):  # before glibc 2.33
        yield
        return
    libc.mallinfo2.restype = _MallocInfo
    blocks, size, room = [], LARGEST_HOLE, libc.mallinfo2().fordblks
    try:
        while size >= SMALL_BLOCK:
            mappings = libc.mallinfo2().hblks
            block = libc.malloc(size) if size <= room else None
            if block is not None and libc.mallinfo2().hblks == mappings:
                blocks.append(block)
                room -= size
            else:  # no hole is so large
                libc.free(block)
                size //= 2
        yield
    finally:
        for block in blocks:
            libc.free(block)
