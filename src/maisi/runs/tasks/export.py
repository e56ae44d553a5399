"""`maisi export`: cases as a data set of another tool."""

from pathlib import Path

from maisi.pipelines.export import Export, checked_export, write_export
from maisi.runs.requests import ExportRequest
from maisi.runs.task import Checked, Output, Run, Task


def check(request: ExportRequest) -> Checked[ExportRequest]:
    """The request with its cases and classes."""
    export = checked_export(request.source, request.to, request.classes)
    return Checked(request.model_copy(update={"source": request.source.resolve()}), export)


def inputs(request: ExportRequest) -> tuple[Path, ...]:
    """The manifest; the files of its cases have sums in it."""
    return (request.source,) if request.source.is_file() else ()


def work(checked: Checked[ExportRequest], run: Run) -> None:
    """Write the data set."""
    export: Export = checked.subject
    write_export(export, run.partial, run.name, lambda done, total: run.on_stage("export", done, total))
    run.publish()


EXPORT = Task("export", ExportRequest, check, work, inputs, Output.WHOLE)
