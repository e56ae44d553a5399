"""`maisi export`: cases as a data set of another tool, or as files for viewers, archives and planning systems."""

from pathlib import Path
from typing import cast

from maisi.pipelines.export import Export, Layout, checked_export, write_export
from maisi.pipelines.export_clinical import Clinical, ClinicalExport, checked_clinical, write_clinical
from maisi.runs.requests import ExportRequest
from maisi.runs.task import Checked, Output, Run, Task, check_not_within


def check(request: ExportRequest) -> Checked[ExportRequest]:
    """The request with its cases and classes."""
    places = {name: path and path.resolve() for name, path in (("source", request.source), ("labels", request.labels))}
    if request.is_data_set:
        assert request.source is not None
        export: Export | ClinicalExport = checked_export(request.source, cast(Layout, request.to), request.classes)
    else:
        to, reading = cast(Clinical, request.to), request.reading
        export = checked_clinical(places["source"], places["labels"], to, request.classes, request.encoding, reading)
    return Checked(request.model_copy(update=places), export)


def inputs(request: ExportRequest) -> tuple[Path, ...]:
    """The files that are named; those of the cases of a manifest have sums in it."""
    if request.is_data_set:
        return (request.source,) if request.source is not None and request.source.is_file() else ()
    return tuple(path for path in (request.source, request.labels) if path is not None)


def check_place(request: ExportRequest, out: Path) -> None:
    """Nothing, or the refusal of a place in which something is read."""
    check_not_within(out, (request.source, request.labels))


def work(checked: Checked[ExportRequest], run: Run) -> None:
    """Write the data set, or the files."""
    export: Export | ClinicalExport = checked.subject
    if isinstance(export, Export):
        write_export(export, run.partial, run.name, lambda done, total: run.on_stage("export", done, total))
    else:
        write_clinical(export, run.partial, run.made(""), lambda done, total: run.on_stage("export", done, total))
    run.publish()


EXPORT = Task("export", ExportRequest, check, work, inputs, Output.WHOLE, check_place=check_place)
