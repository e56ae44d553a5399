"""Seconds and peak memory of the stages of a run."""

import sys
import time
from pathlib import Path

import psutil

from maisi.shapes import Frozen

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Stage(Frozen):
    """What a stage took, over all its turns: seconds, and the highest resident memory of the process meanwhile."""

    seconds: float
    peak_bytes: int


class StageMeter:
    """Measures stages that follow each other without a gap.

    Where the system keeps only one peak for the whole life of a process (all but Linux), a stage's peak is the highest
    so far.
    """

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._start()

    @property
    def stages(self) -> dict[str, Stage]:
        """What was measured, in the order of first turns."""
        return dict(self._stages)

    def end(self, stage: str) -> None:
        """All since the last end (or the beginning) was this stage."""
        last = self._stages.get(stage, Stage(seconds=0.0, peak_bytes=0))
        self._stages[stage] = Stage(
            seconds=round(last.seconds + time.perf_counter() - self._since, 3),
            peak_bytes=max(last.peak_bytes, _peak_bytes()),
        )
        self._start()

    def _start(self) -> None:
        _reset_peak()
        self._since = time.perf_counter()


def _peak_bytes() -> int:
    if _STATUS.exists():
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _reset_peak() -> None:
    try:
        _RESET.write_text("5")  # proc(5): sets the peak resident set size to the current one
    except OSError:
        return
