"""A run again, on the same bundle and inputs: of a folder with its records, or of one file that says what made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maisi.errors import InvalidRequestError
from maisi.runs.carry_out import carry_out, read_run_settings
from maisi.runs.record import RunRecord, read_record
from maisi.runs.same import same_content
from maisi.runs.task import Output, Task, Watch
from maisi.runs.tasks import task_named
from maisi.space.dicom.labels import is_label_file
from maisi.space.dicom.opening import is_dicom
from maisi.space.origin import read_provenance
from maisi.splitting.ranks import Ranks
from maisi.storage.folders import RUN_RECORD, RUN_SETTINGS
from maisi.storage.provenance import Provenance
from maisi.storage.settings import check_settings


@dataclass(frozen=True)
class PastRun:
    """What a run was: its task, its request, its record."""

    task: Task[Any]
    request: BaseModel
    record: RunRecord | Provenance

    @property
    def file_name(self) -> str:
        """The name of its one file, "" where it filled a folder."""
        if self.task.output is not Output.FILE:
            return ""
        if isinstance(self.record, Provenance):
            return self.record.file
        return next(name for name in self.record.outputs if name.endswith(self.task.suffixes))

    def repeat(
        self, folder: Path, overwrite: bool = False, watch: Watch = Watch(), ranks: Ranks | None = None
    ) -> RunRecord | None:
        """Carry it out again into a folder; refused on another bundle or other inputs."""
        out = folder / self.file_name if self.file_name else folder
        if self.file_name:
            folder.mkdir(parents=True, exist_ok=True)
        return carry_out(
            self.task, self.request, out, overwrite=overwrite, repeats=self.record, watch=watch, ranks=ranks
        )


@dataclass(frozen=True)
class Remade:
    """A file beside what its own run made of it again."""

    path: Path
    is_identical: bool  # byte by byte
    is_same: bool  # voxel by voxel, on one grid


def read_origin(path: Path) -> PastRun:
    """The run that made a file (NIfTI, NRRD, MetaImage, DICOM) or a DICOM series, by what the file says."""
    made = read_provenance(path)
    task = task_named(made.command)
    return PastRun(task, check_settings(task.request, made.request), made)


def is_run(path: Path) -> bool:
    """Whether a path names the records of a run: its folder, or its `run.yaml`."""
    if path.is_dir():
        return (path / RUN_SETTINGS).exists() or not any(path.glob("*.dcm"))
    return path.name.endswith(RUN_SETTINGS) or path.suffix in (".yaml", ".yml", ".json")


def compare(path: Path, made: Provenance, folder: Path) -> Remade:
    """A file beside the one of the same name in the folder of its repeated run.

    A file that was converted since is compared by its content alone: voxels, ids, place.
    """
    again = folder / made.file
    if is_dicom(path) and not is_label_file(path):
        path = path.parent  # of a slice: its series
    if not again.exists():
        raise InvalidRequestError(f"the run of {path} made no {made.file} when it was repeated")
    is_identical = _bytes(path) == _bytes(again)
    return Remade(again, is_identical, is_identical or same_content(path, again))


def _bytes(path: Path) -> list[bytes]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [file.read_bytes() for file in files]


def read_run(path: Path) -> PastRun:
    """The run of a folder, or of its `run.yaml`. Raises `InvalidRequestError` for what is none, or not complete."""
    settings_file = path / RUN_SETTINGS if path.is_dir() else path
    command, settings = read_run_settings(settings_file)
    task = task_named(command)
    request = check_settings(task.request, settings)
    stem = settings_file.name.removesuffix(RUN_SETTINGS)
    return PastRun(task, request, read_record(settings_file.with_name(f"{stem}{RUN_RECORD}")))
