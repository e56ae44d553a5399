"""Work case by case: what was made of a case stays, and a run that was killed goes on with the next."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel

from maisi.runs.task import Run
from maisi.storage.folders import storage_errors

Made = TypeVar("Made", bound=BaseModel)


def piece(run: Run, name: str, model: type[Made], make: Callable[[], Made]) -> Made:
    """What an earlier part of the run left in the file `name`, else what `make` gives, which then lies there."""
    if run.has((name,)):
        return model.model_validate_json((run.folder / name).read_text(encoding="utf-8"))
    made = make()
    write_report(run, {name: made})
    run.publish()
    return made


def write_report(run: Run, files: Mapping[str, BaseModel | str]) -> None:
    """Write models as JSON and pages as they are, under these names; raises `StorageError` where there is no room."""
    with storage_errors(run.folder):
        for name, content in files.items():
            text = content if isinstance(content, str) else content.model_dump_json(indent=1) + "\n"
            (run.partial / name).write_text(text, encoding="utf-8")


def case_file(*parts: str) -> str:
    """The name of the file of a case; an id that is a path names one file all the same."""
    return "case_" + "_".join(part.replace("/", "__") for part in parts) + ".json"
