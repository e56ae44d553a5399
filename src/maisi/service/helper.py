"""Work that is too heavy, or too dangerous, for the web process: done in a process of its own, within limits.

A helper is a module with a `main` that calls `answer`: a question in JSON on stdin, the answer in JSON on stdout.
"""

import errno
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from maisi.errors import InvalidRequestError, MaisiError, RunError, StorageError, TooLargeError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TOO_LARGE, REFUSED, FAILED, NO_ROOM = 3, 4, 5, 6
FULL = (errno.ENOSPC, errno.EDQUOT)
NEEDED_BYTES = 2_000_000_000  # of addresses, for the libraries
SHARE = 0.5  # of the machine's memory, at most
AT_ONCE = 2  # helpers of a kind, so that many requests at once do not fill the memory


async def answered(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function that asks a helper gives, in a thread; two of a kind at once, the others wait."""
    return await to_thread.run_sync(work, *arguments, limiter=_limiter(work.__name__))


@lru_cache
def _limiter(of: str) -> CapacityLimiter:
    return CapacityLimiter(AT_ONCE)


def ask(module: str, question: dict[str, Any], *, cwd: Path, seconds: float) -> dict[str, Any]:
    """The answer of a helper; raises what it raised, and `TooLargeError` where it took too long or too much memory."""
    command = [sys.executable, "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": _search_path()}
    try:
        done = subprocess.run(
            command, input=json.dumps(question).encode(), capture_output=True, cwd=cwd, env=environment, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise TooLargeError(f"it was not read within {seconds:g} s; accepted: a smaller file") from error
    told = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        answered: dict[str, Any] = json.loads(told)
        return answered
    if done.returncode == REFUSED:
        raise InvalidRequestError(told)
    if done.returncode == FAILED:
        raise RunError(told)
    if done.returncode == TOO_LARGE or done.returncode < 0:
        raise TooLargeError(told or "it takes more memory than the service gives; accepted: a smaller file")
    if done.returncode == NO_ROOM:
        raise StorageError(told)
    logger.error("%s ended with %d: %s", module, done.returncode, done.stderr.decode("utf-8", "replace").strip())
    raise RunError("it could not be read (this is a bug of maisi; its log says more)")


def no_room(error: OSError) -> str:
    """What a client is told of a disk that is full, without where it is."""
    return f"the disk of the service is full ({error.strerror}); accepted: remove jobs and uploads, or ask again later"


def _search_path() -> str:
    """Where this package is found, also from another working directory."""
    return str(Path(__file__).parents[2])


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the question on stdin, and exit; the code says what kind of error it was, stdout its text."""
    try:
        told, code = json.dumps(work(json.load(sys.stdin))), 0
    except TooLargeError as error:
        told, code = str(error), TOO_LARGE
    except MemoryError:
        told, code = "it takes more memory than the service gives; accepted: a smaller file", TOO_LARGE
    except InvalidRequestError as error:
        told, code = str(error), REFUSED
    except StorageError as error:
        told, code = str(error), NO_ROOM
    except MaisiError as error:
        told, code = str(error), FAILED
    except OSError as error:
        if error.errno not in FULL:
            raise
        told, code = no_room(error), NO_ROOM
    sys.stdout.write(told)
    sys.stdout.flush()
    sys.exit(code)


def limit_memory(num_bytes: int) -> None:
    """Let this process take no more than an amount of memory besides its libraries; more raises `MemoryError`."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = min(num_bytes, round(SHARE * there)) + NEEDED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
