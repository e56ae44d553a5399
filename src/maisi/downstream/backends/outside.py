"""What frameworks in environments of their own have in common: where their commands are, and files as they take them.

They cannot leave a class out of a case's loss, so cases in which any class is unknown are left out, which is logged.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from maisi.compute.threads import NUM_THREADS
from maisi.downstream.backends.backend import Exercise
from maisi.downstream.store import StoredCase
from maisi.errors import InvalidRequestError, RunError
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap, check_same_grid

logger = logging.getLogger(__name__)


def command_in(environment: Path | None, name: str, what: str, install: str) -> str:
    """A command of an environment, or of this one; raises `InvalidRequestError` with the line that installs it."""
    place = None if environment is None else str(environment / ("Scripts" if os.name == "nt" else "bin"))
    found = shutil.which(name, path=place)
    if found is None:
        where = f"in {environment}" if environment is not None else "on the path"
        raise InvalidRequestError(f"{what} is not installed: there is no {name} {where}; install it by: {install}")
    return found


def same_threads() -> dict[str, str]:
    """The variables that give a framework as many threads as this process has."""
    return dict.fromkeys(NUM_THREADS, str(torch.get_num_threads()))


def complete_cases(cases: tuple[StoredCase, ...], exercise: Exercise) -> list[StoredCase]:
    """The cases in which every class was looked for; raises `InvalidRequestError` where there is none."""
    complete = [case for case in cases if set(exercise.classes) <= set(case.known)]
    if not complete:
        raise InvalidRequestError(
            f"the backend {exercise.settings.backend} takes cases that are labelled completely, and none of "
            f"{len(cases)} is for {', '.join(exercise.classes)}; accepted: the backend builtin, or fewer structures"
        )
    if len(complete) < len(cases):
        logger.warning(
            "%d of %d cases do not know all classes and are left out", len(cases) - len(complete), len(cases)
        )
    return complete


def link(source: Path, target: Path) -> None:
    """The same file under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def found_in(folder: Path, exercise: Exercise, ending: str) -> Iterator[tuple[StoredCase, LabelMap]]:
    """What was written for each case to test on; raises `RunError` where that is nothing, or is on another grid."""
    for case in exercise.test:
        path = next(iter(sorted(folder.rglob(f"{case.id}{ending}"))), None)
        if path is None:
            raise RunError(f"{exercise.settings.backend} ended well, but wrote nothing for {case.id}")
        labels = read_labels(path)
        check_same_grid(labels, case.classes(exercise.folder))
        yield case, labels
