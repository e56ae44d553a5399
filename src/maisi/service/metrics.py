"""Counts and times of a service, in the text format of Prometheus."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import psutil
from starlette.types import Scope

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STREAMS = "/events"  # these last as long as their jobs

Sample = tuple[Mapping[str, str], float]


class Metrics:
    """What a web process has answered since it started; any number of threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._seconds = 0.0

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer, by its route and not by its path: ids are no labels."""
        route = getattr(scope.get("route"), "path", "other")
        with self._lock:
            method = scope["method"] if scope["method"] in METHODS else "other"  # clients may invent some
            self._answers[method if route != "other" else "", route, status] += 1
            if not route.endswith(STREAMS):
                self._buckets[sum(seconds > bound for bound in BOUNDS_S)] += 1
                self._seconds += seconds

    def text(self, jobs: Mapping[str, int], held_bytes: Mapping[str, int], limits: Mapping[str, float | None]) -> str:
        """All metrics: those of this process, and how many jobs are in which state."""
        with self._lock:
            answers, buckets, total = dict(self._answers), list(self._buckets), self._seconds
        memory = psutil.Process(os.getpid()).memory_info().rss
        found: list[tuple[str, str, str, Iterable[Sample]]] = [
            ("maisi_jobs", "gauge", "Jobs by state.", [({"state": name}, n) for name, n in jobs.items()]),
            ("maisi_held_bytes", "gauge", "Disk taken.", [({"what": name}, n) for name, n in held_bytes.items()]),
            (
                "maisi_limit",
                "gauge",
                "What the service takes at most.",
                [({"of": name}, n) for name, n in limits.items() if n is not None],
            ),
            (
                "maisi_http_answers_total",
                "counter",
                "Answers by route and status.",
                [({"method": m, "route": r, "status": str(s)}, n) for (m, r, s), n in sorted(answers.items())],
            ),
            ("process_resident_memory_bytes", "gauge", "Memory of the web process.", [({}, memory)]),
            ("process_start_time_seconds", "gauge", "When it started.", [({}, self._started)]),
        ]
        lines = [line for name, kind, help, samples in found for line in _lines(name, kind, help, samples)]
        return "\n".join([*lines, *_histogram(buckets, total)]) + "\n"


def _lines(name: str, kind: str, help: str, samples: Iterable[Sample]) -> list[str]:
    told = [f"{name}{_labels(labels)} {value:.16g}" for labels, value in samples]
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *told]


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram(buckets: list[int], total: float) -> list[str]:
    name = "maisi_http_seconds"
    lines = [f"# HELP {name} How long answers took, streams of events left out.", f"# TYPE {name} histogram"]
    reached = 0
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], buckets, strict=True):
        reached += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {reached}')
    return [*lines, f"{name}_sum {total:.6f}", f"{name}_count {reached}"]
