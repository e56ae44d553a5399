"""The web process's end of `planning`: started at a question, ended once none has come for long. Imports no torch."""

import json
import subprocess
import sys
import threading
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

from maisi.errors import RunError, StoppedError
from maisi.service.helper import ENDING, helper_environment
from maisi.service.told import PlanTold

LONGEST_S, IDLE_S = 300.0, 600.0


class Planner:
    """Asks a process of its own what jobs would take, one question at a time.

    `threads` and `memory` (bytes, None for no bound) are those of a worker.
    """

    def __init__(self, threads: int, memory: int | None = None) -> None:
        self._threads, self._memory = threads, memory
        self._lock, self._starts = threading.Lock(), threading.Lock()  # one question at a time; no process once closed
        self._closed = False
        self._process: subprocess.Popen[str] | None = None
        self._answers: Queue[str] = Queue()
        self._idle: threading.Timer | None = None

    def plan(self, kind: str, request: dict[str, Any]) -> PlanTold:
        """What a job of a resolved request would take.

        Raises `RunError` where that cannot be told in time, `StoppedError` where `close` was first.
        """
        question = {"kind": kind, "request": request, "threads": self._threads, "memory": self._memory}
        with self._lock:
            self._wait_longer()
            try:
                told = self._asked(json.dumps(question))
            except (OSError, Empty, ValueError) as error:
                self._end()
                if self._closed:
                    raise StoppedError(ENDING) from error
                raise RunError("what the job takes could not be told; accepted: again, or the job itself") from error
        return PlanTold.model_validate(told)

    def _asked(self, question: str) -> Any:
        with self._starts:
            process = self._running()
        assert process.stdin is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
        return json.loads(self._answers.get(timeout=LONGEST_S))

    def _running(self) -> "subprocess.Popen[str]":
        if self._closed:
            raise OSError(ENDING)
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "maisi.service.planning"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=helper_environment(),
                text=True,
            )
            self._answers = Queue()
            threading.Thread(target=_forward, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def _wait_longer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(IDLE_S, self._rest)
        self._idle.daemon = True
        self._idle.start()

    def _rest(self) -> None:
        """End the process where it has no question; the next one starts another."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the process for good, whatever it is at."""
        with self._starts:
            self._closed = True
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # what it has not read
            process.stdin.close()


def _forward(process: "subprocess.Popen[str]", answers: Queue[str]) -> None:
    """Put each line of a process into a queue; an empty one at its end."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            answers.put(line)
    answers.put("")
