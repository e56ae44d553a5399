"""How fast a training goes, and how long it still takes, by what it has taken so far."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping

import numpy as np

LAST = 50  # steps, validations or checkpoints whose mean tells what the next will take
STEPS, SECONDS, LEFT = "steps", "seconds_a_step", "seconds_left"
PACE = (STEPS, SECONDS, LEFT)
"""What is told of the pace, beside the numbers of a step."""

Cost = Callable[[int], float]
"""What a step costs beside others: the voxels that it sees, say."""


def alike(step: int) -> float:
    """The cost of steps that all take as long."""
    return 1.0


class Pace:
    """Seconds of the last steps, validations and checkpoints of this process; a resumed run measures them anew.

    Steps count by their cost, so that small patches at first do not promise a short run.
    """

    def __init__(self, steps: int, cost: Cost = alike, every: Mapping[str, int] | None = None) -> None:
        self.steps, self.every = steps, dict(every or {})
        self._costs = np.array([cost(step) for step in range(steps)], np.float64)
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LAST))
        self._counts: dict[str, int] = defaultdict(int)

    def took(self, what: str, seconds: float) -> None:
        """Take the time of a validation or a checkpoint into account; the first of a kind warms up."""
        if self._counts[what] == 1:
            self._seconds[what].clear()
        self._counts[what] += 1
        self._seconds[what].append(seconds)

    def stepped(self, step: int, seconds: float) -> None:
        """Take the time of step `step`, counted from 0, into account."""
        self.took("step", seconds / self._costs[step])

    def facts(self, done: int) -> dict[str, float]:
        """How many steps there are, the seconds of the next one, and of all that is left after `done` of them."""
        each = {what: float(np.mean(seconds)) for what, seconds in self._seconds.items()}
        if done >= self.steps or "step" not in each:
            return {STEPS: self.steps, LEFT: 0.0} if done >= self.steps else {STEPS: self.steps}
        left = each["step"] * float(self._costs[done:].sum())
        for what, every in self.every.items():
            left += each.get(what, 0.0) * (self.steps // every - done // every if every else 0)
        return {STEPS: self.steps, SECONDS: each["step"] * float(self._costs[done]), LEFT: left}


def spelled(facts: Mapping[str, float]) -> str:
    """The pace in words: 0.52 s a step, 16 min left."""
    said = []
    if SECONDS in facts:
        said.append(f"{facts[SECONDS]:.2g} s a step")
    if LEFT in facts and facts[LEFT] > 0:
        said.append(f"{_duration(facts[LEFT])} left")
    return ", ".join(said)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if unit != "min" else f"{seconds / length:.0f} min"
    return f"{max(seconds, 1):.0f} s"
