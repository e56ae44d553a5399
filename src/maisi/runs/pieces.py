"""Work case by case: what was made of a case stays, and a run that was killed goes on with the next."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from maisi.runs.task import Run
from maisi.storage.folders import storage_errors

Made = TypeVar("Made", bound=BaseModel)


class Piece(BaseModel, Generic[Made]):
    """What was made of a case, and of which files."""

    made_of: tuple[str, ...]
    made: Made


def piece(run: Run, name: str, model: type[Made], files: Sequence[Path], make: Callable[[], Made]) -> Made:
    """What an earlier part of the run made of these files and left in the file `name`, else what `make` gives.

    That lies there then. Files that were changed meanwhile are others.
    """
    made_of = tuple(file_state(path) for path in files)
    if run.has((name,)):
        there = Piece[model].model_validate_json((run.folder / name).read_text(encoding="utf-8"))  # type: ignore[valid-type]
        if there.made_of == made_of:
            return there.made
    made = make()
    write_report(run, {name: Piece[model](made_of=made_of, made=made)})  # type: ignore[valid-type]
    run.publish()
    return made


def file_state(path: Path) -> str:
    """Size and time of a file (or folder), which change where another takes its place; of none that it is not there."""
    if not path.exists():  # which is told where it is read
        return "not there"
    found = path.stat()
    return f"{found.st_size} bytes written at {found.st_mtime_ns} ns"


def write_report(run: Run, files: Mapping[str, BaseModel | str]) -> None:
    """Write models as JSON and pages as they are, under these names; raises `StorageError` where there is no room."""
    with storage_errors(run.folder):
        for name, content in files.items():
            text = content if isinstance(content, str) else content.model_dump_json(indent=1) + "\n"
            (run.partial / name).write_text(text, encoding="utf-8")


def case_file(*parts: str) -> str:
    """The name of the file of a case; an id that is a path names one file all the same."""
    return "case_" + "_".join(part.replace("/", "__") for part in parts) + ".json"
