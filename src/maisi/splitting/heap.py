"""What the C library does with the memory of freed slabs (glibc; elsewhere nothing is changed)."""

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
USUAL_MAPPINGS = 65536
LARGEST_BLOCK = 32 << 20  # up to which glibc would reuse memory by itself after a while
SMALL_BLOCK = 1 << 18
UNLIMITED = (1 << 31) - 1


@contextlib.contextmanager
def freed_slabs(kept: bool) -> Iterator[None]:
    """Within, freed slabs are kept for the next ones, or given back to the system at once.

    Fresh memory has to be cleared by the system, which takes a fifth of the time of a decode. But kept memory has
    holes, a sixth of the peak and more, so a planned run gives it back.
    """
    try:
        libc = ctypes.CDLL(None)
        set_parameter, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):  # not glibc
        yield
        return
    set_parameter(MMAP_MAX, 0 if kept else USUAL_MAPPINGS)
    set_parameter(MMAP_THRESHOLD, LARGEST_BLOCK if kept else SMALL_BLOCK)
    set_parameter(TRIM_THRESHOLD, UNLIMITED if kept else SMALL_BLOCK)
    try:
        yield
    finally:
        set_parameter(MMAP_MAX, USUAL_MAPPINGS)
        set_parameter(MMAP_THRESHOLD, LARGEST_BLOCK if kept else SMALL_BLOCK)
        set_parameter(TRIM_THRESHOLD, 2 * LARGEST_BLOCK if kept else SMALL_BLOCK)
        trim(0)
