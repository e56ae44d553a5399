"""A run again, on the same bundle and inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maisi.runs.carry_out import RUN_RECORD, RUN_SETTINGS, carry_out, read_run_settings
from maisi.runs.record import RunRecord, read_record
from maisi.runs.task import Output, Task, Watch
from maisi.runs.tasks import task_named
from maisi.splitting.ranks import Ranks
from maisi.storage.settings import check_settings


@dataclass(frozen=True)
class PastRun:
    """What a run was: its task, its request, its record."""

    task: Task[Any]
    request: BaseModel
    record: RunRecord

    @property
    def file_name(self) -> str:
        """The name of its one file, "" where it filled a folder."""
        if self.task.output is not Output.FILE:
            return ""
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


def read_run(path: Path) -> PastRun:
    """The run of a folder, or of its `run.yaml`. Raises `InvalidRequestError` for what is none, or not complete."""
    settings_file = path / RUN_SETTINGS if path.is_dir() else path
    command, settings = read_run_settings(settings_file)
    task = task_named(command)
    request = check_settings(task.request, settings)
    stem = settings_file.name.removesuffix(RUN_SETTINGS)
    return PastRun(task, request, read_record(settings_file.with_name(f"{stem}{RUN_RECORD}")))
