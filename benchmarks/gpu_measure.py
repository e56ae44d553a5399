"""Figures within a time budget: timed calls, peaks of a GPU, sections that may fail or be cut short; their tables."""

import gc
import math
import platform
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
AGAIN_S = 2.0
LONG_S = 4.0  # a first call that takes longer is the figure: there is no time to warm up for it


class OutOfTime(Exception):
    """Raised in what takes longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Within, `OutOfTime` is raised after so many seconds, or when the time around it is over, whichever is sooner.

    And again every two seconds, for the first may be lost where Python ignores errors.
    """

    def stop(signum: int, frame: Any) -> None:
        raise OutOfTime

    start, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    around = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.setitimer(signal.ITIMER_REAL, max(0.01, min(seconds, around or math.inf)), AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if around:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, around - (time.monotonic() - start)), AGAIN_S)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within, float32 products of a GPU are of 10 bits, or of 23."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


@dataclass
class Gauge:
    """Times calls on one device until a deadline."""

    device: torch.device
    rounds: int = 3
    deadline: float = math.inf

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Gives back what is no longer used."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def timed(self, function: Callable[[], Any]) -> tuple[float, int | None, int | None]:
        """Seconds of a call, the most bytes of the device's memory meanwhile, and what it held before."""
        self.wait()
        held = torch.cuda.memory_allocated(self.device) if self.is_cuda else None
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        result = function()
        self.wait()
        seconds = time.perf_counter() - start
        del result
        return seconds, torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None, held

    def row(
        self, label: str, function: Callable[[], Any], *, rounds: int | None = None, limit_s: float = 30.0, **about: Any
    ) -> Row:
        """Median seconds and peak bytes of a call after a warm-up, or what prevented them."""
        row: Row = {"label": label, **about}
        if self.left() < 1:
            return row | {"skipped": "no time left"}
        found: list[tuple[float, int | None, int | None]] = []
        self.clean()
        allowance = min(limit_s, self.left())
        try:
            with at_most(allowance):
                found = [self.timed(function)]
                if found[0][0] <= LONG_S:
                    found = [self.timed(function) for _ in range(min(rounds or self.rounds, self.rounds))]
        except OutOfTime:
            row |= {} if found else {"error": f"not done within {allowance:.0f} s"}
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
        except Exception as error:  # noqa: BLE001 (a figure that fails must not take the others with it)
            row["error"] = told(error)
        self.clean()
        if not found:
            return row
        seconds, peaks, held = zip(*found, strict=True)
        row |= {"seconds": statistics.median(seconds), "rounds": len(found)}
        return row | {"peak_bytes": peaks[-1], "held_bytes": held[-1]}


@dataclass
class Section:
    """Rows that belong together, and the seconds that they may take."""

    name: str
    title: str
    budget_s: float
    rows: Callable[..., Iterator[Row]]
    found: list[Row] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    def run(self, gauge: Gauge, allowance_s: float, *arguments: Any) -> None:
        """Collects the rows; those found before an error or the end of the time stay."""
        start = time.monotonic()
        if allowance_s < 1:
            self.error = "skipped: no time left"
            return
        gauge.deadline = start + allowance_s
        try:
            with at_most(allowance_s + 2):  # rows keep the deadline themselves; this is for what lies between them
                for row in self.rows(gauge, *arguments):
                    self.found.append(row)
        except OutOfTime:
            self.error = f"stopped after {allowance_s:.0f} s"
        except Exception as error:  # noqa: BLE001 (a section that fails must not take the others with it)
            self.error = told(error)
        gauge.clean()
        self.seconds = time.monotonic() - start

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "budget_s": self.budget_s,
            "seconds": round(self.seconds, 2),
            "error": self.error,
            "rows": self.found,
        }


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def deviation(found: Tensor, expected: Tensor) -> dict[str, float]:
    """The largest difference relative to the largest value, and the rms relative to the rms."""
    found, expected = found.float(), expected.float()
    difference = found - expected
    largest = float(difference.abs().max() / expected.abs().max())
    return {"largest": largest, "rms": float(difference.square().mean().sqrt() / expected.square().mean().sqrt())}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    about: dict[str, Any] = {
        "device": "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "monai": version_of("monai"),
        "maisi": version_of("maisi"),
        "host": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return about


def driver() -> str | None:
    """The version of NVIDIA's driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def table(section: Section) -> str:
    """The rows in Markdown; a column for each key that some row has."""
    lines = [f"#### {section.title}", ""]
    if section.error:
        lines += [f"Incomplete: {section.error}.", ""]
    keys = [key for key in dict.fromkeys(key for row in section.found for key in row) if key != "label"]
    keys = [key for key in keys if any(row.get(key) is not None for row in section.found)]
    if section.found:
        lines += [f"| | {' | '.join(map(heading, keys))} |", "|---" * (1 + len(keys)) + "|"]
    for row in section.found:
        lines.append(f"| {row['label']} | {' | '.join(shown(key, row.get(key)) for key in keys)} |")
    return "\n".join([*lines, ""])


def heading(key: str) -> str:
    """A column's head, with its unit."""
    if key.endswith("_bytes"):
        return key.removesuffix("_bytes").replace("_", " ") + " GiB"
    return "s" if key == "seconds" else key.replace("_", " ")


def shown(key: str, value: Any) -> str:
    """A figure to be read by people."""
    if value is None:
        return ""
    if key.endswith("_bytes"):
        return f"{value / 2**30:.2f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if 0.01 <= abs(value) < 1e5 or value == 0 else f"{value:.1e}"
    return str(value)
