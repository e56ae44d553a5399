"""How much longer a job takes, by how long its steps and its finished samples took."""

import time
from collections.abc import Callable

MEANINGFUL_S = 1.0  # a stage that is younger tells nothing


class Pace:
    """Follows the stages of a job of `samples` pieces, where it is known how many there are."""

    def __init__(self, samples: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._samples, self._clock = samples, clock
        self._began = self._stage_began = clock()
        self._stage, self._finished, self._seconds_a_sample = "", 0, 0.0
        self._first_step = 0

    def seconds_left(self, stage: str, done: int, total: int) -> float | None:
        """Seconds of this stage and of the samples that follow, None where nobody can tell: at least so many."""
        now = self._clock()
        if stage != self._stage or done < self._first_step:
            self._stage, self._stage_began, self._first_step = stage, now, done
        steps, passed = done - self._first_step, now - self._stage_began
        if self._finished and self._samples is not None:
            pending = self._samples - self._finished
            return round(max(0.0, pending * self._seconds_a_sample - (now - self._began)), 1)
        if steps < 1 or passed < MEANINGFUL_S:
            return None
        rest = passed / steps * (total - done)
        others = 0 if self._samples is None else max(0, self._samples - 1)
        return round(rest + others * (now - self._began + rest), 1)

    def finished(self) -> None:
        """A sample is in place."""
        now = self._clock()
        taken, self._began = now - self._began, now
        self._seconds_a_sample = (self._seconds_a_sample * self._finished + taken) / (self._finished + 1)
        self._finished += 1
