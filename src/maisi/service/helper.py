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
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from maisi.errors import InvalidRequestError, MaisiError, RunError, StoppedError, StorageError, TooLargeError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TOO_LARGE, REFUSED, FAILED, NO_ROOM = 3, 4, 5, 6
FULL = (errno.ENOSPC, errno.EDQUOT)
NEEDED_BYTES = 2_000_000_000  # of addresses, for the libraries
SHARE = 0.5  # of the machine's memory, at most
AT_ONCE = 2  # helpers of a kind, so that many requests at once do not fill the memory
ORPHAN_S = 0.5  # for a helper to notice that its service was killed
ASKED_BY = "MAISI_SERVICE_PROCESS"  # in the environment of what a service has started
ENDING = "the service is ending; accepted: again, once it is back"

_working: set["subprocess.Popen[bytes]"] = set()  # what this process has asked and not heard of yet
_starting = threading.Lock()  # held until what is started is among the working


async def answered(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function that asks a helper gives, in a thread; two of a kind at once, the others wait."""
    return await to_thread.run_sync(work, *arguments, limiter=_limiter(work.__name__))


@lru_cache
def _limiter(of: str) -> CapacityLimiter:
    return CapacityLimiter(AT_ONCE)


def ask(module: str, question: dict[str, Any], *, cwd: Path, seconds: float) -> dict[str, Any]:
    """The answer of a helper; raises what it raised, and `TooLargeError` where it took too long or too much memory.

    Raises `StoppedError` where `end_helpers` was first.
    """
    command = [sys.executable, "-m", module]
    environment = helper_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with _starting:
        started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=environment)
        _working.add(started)
    with started as process:
        try:
            out, err = process.communicate(json.dumps(question).encode(), seconds)
        except subprocess.TimeoutExpired as error:
            raise TooLargeError(f"it was not read within {seconds:g} s; accepted: a smaller file") from error
        finally:
            process.kill()
            was_ended = process not in _working
            _working.discard(process)
    told, code = out.decode("utf-8", "replace"), process.returncode
    if code == 0:
        answered: dict[str, Any] = json.loads(told)
        return answered
    if was_ended:
        raise StoppedError(ENDING)
    if code == REFUSED:
        raise InvalidRequestError(told)
    if code == FAILED:
        raise RunError(told)
    if code == TOO_LARGE or code < 0:
        raise TooLargeError(told or "it takes more memory than the service gives; accepted: a smaller file")
    if code == NO_ROOM:
        raise StorageError(told)
    logger.error("%s ended with %d: %s", module, code, err.decode("utf-8", "replace").strip())
    raise RunError("it could not be read (this is a bug of maisi; its log says more)")


def end_helpers() -> None:
    """End all that this process has asked, so that its own end waits for none."""
    with _starting:
        ended = tuple(_working)
        _working.clear()
    for process in ended:
        process.kill()


def end_with_parent() -> None:
    """End this process soon after the service that has started it is gone, whatever it is at."""
    if ASKED_BY not in os.environ:
        return

    def watch() -> None:
        while os.getppid() == int(os.environ[ASKED_BY]):
            time.sleep(ORPHAN_S)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


def no_room(error: OSError) -> str:
    """What a client is told of a disk that is full, without where it is."""
    return f"the disk of the service is full ({error.strerror}); accepted: remove jobs and uploads, or ask again later"


def helper_environment() -> dict[str, str]:
    """What a process of this package needs to find it from any working directory, and to end with this one."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), ASKED_BY: str(os.getpid())}


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the question on stdin, and exit; the code says what kind of error it was, stdout its text."""
    end_with_parent()
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
