"""What the command line says: results to stdout, talk to stderr."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

ASKED_WRONGLY = 2
"""The exit code of a request that cannot be carried out."""

interrupted = Event()
"""Set by an interrupt: Python drops what is raised in a callback or a destructor, so `progress` asks again."""

TOLD_EVERY_S = 30.0  # steps of a training where nobody watches
TOLD_AFTER_S = 10.0  # stages of what takes longer
STAGES = {"encode": "encoding", "labels": "drawing labels", "sample": "sampling", "decode": "decoding"}


def tell(text: str) -> None:
    """A line of talk."""
    print(text, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Each line of a message as an error."""
    for line in message.splitlines() or ["failed"]:
        tell(f"error: {line}")


def give(text: str) -> None:
    """A line of result."""
    print(text)


def give_json(value: Any) -> None:
    """A result for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def give_table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Rows in aligned columns, never wrapped; numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    if not cells and not header:
        return
    table = Table(box=None, show_header=bool(header), header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for k in range(len(header or cells[0])):
        is_number = bool(cells) and all(_is_number(row[k]) for row in cells)
        table.add_column(header[k] if header else "", justify="right" if is_number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    width = sum(max(map(len, column)) + 2 for column in zip(*cells, *([list(header)] if header else []), strict=True))
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        give(line.rstrip())


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").lstrip("-").isdigit()


@contextmanager
def follow_log(level: int) -> Iterator[None]:
    """What maisi logs from `level` up goes to stderr, while the block lasts."""
    logger, handler = logging.getLogger("maisi"), logging.StreamHandler()
    handler.setFormatter(_Lines())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _stop_if_interrupted() -> None:
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def progress(title: str, lines: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; the function takes a stage, the steps done and the steps in all.

    Elsewhere nothing, or with `lines` a line now and then of what takes long. It raises `KeyboardInterrupt` where an
    interrupt came and was dropped.
    """
    if not sys.stderr.isatty():
        yield lines_of_stages(title, tell) if lines else lambda stage, done, total: _stop_if_interrupted()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    to_file = not sys.stdout.isatty()  # then results must not pass through the bar's console, which is stderr
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=not to_file) as bars:
        task = bars.add_task(f"{title}: loading", total=1)

        def on_stage(stage: str, done: int, total: int) -> None:
            _stop_if_interrupted()
            description = f"{title}: {STAGES.get(stage, stage)}"
            if bars.tasks[task].description != description:  # the time left is that of this stage
                bars.reset(task, total=total, description=description)
            bars.update(task, completed=done, total=total)

        yield on_stage


def lines_of_stages(
    title: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[str, int, int], None]:
    """Says how far a stage is, and the time left, from `TOLD_AFTER_S` on and then at most every `TOLD_EVERY_S`."""
    started: dict[str, tuple[float, int]] = {}
    next_line = clock() + TOLD_AFTER_S

    def on_stage(stage: str, done: int, total: int) -> None:
        nonlocal next_line
        _stop_if_interrupted()
        since, before = started.setdefault(stage, (clock(), done))
        if clock() < next_line or done >= total:
            return
        next_line = clock() + TOLD_EVERY_S
        left = (clock() - since) / (done - before) * (total - done) if done > before else None
        say(f"{title}: {STAGES.get(stage, stage)} {done} of {total}{f', {_duration(left)} left' if left else ''}")

    return on_stage


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


@contextmanager
def steps_told() -> Iterator[Callable[[str, int, int], None]]:
    """The steps of a training as they come: a bar on a terminal, elsewhere a line now and then.

    The function takes "NAME: how it goes", the steps done and the steps in all, 0 where nobody knows; a stage without
    a colon is no step and is not told.
    """
    if not sys.stderr.isatty():
        yield lines_of_steps(tell)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bars:

        def on_stage(stage: str, done: int, total: int) -> None:
            _stop_if_interrupted()
            name, is_step, said = stage.partition(": ")
            if is_step and name not in tasks:
                tasks[name] = bars.add_task(name, total=total or None, said="")
            if is_step:
                bars.update(tasks[name], completed=done, total=total or None, said=said)

        yield on_stage


def lines_of_steps(
    say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[str, int, int], None]:
    """Says the first step of a training, then one at most every `TOLD_EVERY_S`, and the last."""
    last: dict[str, float] = {}

    def on_stage(stage: str, done: int, total: int) -> None:
        _stop_if_interrupted()
        name, is_step, said = stage.partition(": ")
        if is_step and (done == total or clock() - last.get(name, -TOLD_EVERY_S) >= TOLD_EVERY_S):
            last[name] = clock()
            say(f"{name} {done}{f' of {total}' if total else ''}: {said}")

    return on_stage
