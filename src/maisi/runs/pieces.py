"""Work case by case: what was made of a case stays, and a run that was killed goes on with the next."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

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
        with suppress(ValidationError):  # of a version that wrote it otherwise
            there = Piece[model].model_validate_json((run.folder / name).read_text(encoding="utf-8"))  # type: ignore[valid-type]
            if there.made_of == made_of:
                return there.made
    made = make()
    write_report(run, {name: Piece[model](made_of=made_of, made=made)})  # type: ignore[valid-type]
    run.publish()
    return made


def file_state(path: Path) -> str:
    """Size and time of a file, or of all in a folder, which change where another takes its place."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [file.stat() for file in files if file.is_file()]
    if not states:  # which is told where it is read
        return "not there"
    size, latest = sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
    return f"{len(states)} of {size} bytes written until {latest} ns"


def features_made_of(extractor: str, volume: Path) -> str:
    """What features depend on besides the settings: the name of what gives them, and the file of the volume."""
    return f"{extractor} of {file_state(volume)}"


def write_report(run: Run, files: Mapping[str, BaseModel | str]) -> None:
    """Write models as JSON and pages as they are, under these names; raises `StorageError` where there is no room."""
    with storage_errors(run.folder):
        for name, content in files.items():
            text = content if isinstance(content, str) else content.model_dump_json(indent=1) + "\n"
            (run.partial / name).write_text(text, encoding="utf-8")


def case_file(*parts: str, ending: str = ".json", kind: str = "case") -> str:
    """The name of the file of a case; an id that is a path names one file all the same."""
    return "_".join((kind, *(part.replace("/", "__") for part in parts))) + ending
