"""`maisi export`: cases as a data set of another tool, or as files for viewers, archives and planning systems."""

import typer

from maisi.cli.console import give
from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.runs.requests import ExportRequest


@takes(ExportRequest, arguments={"source": "[SOURCE]"}, required=("to",))
def export(request: ExportRequest, context: typer.Context, out: Out, overwrite: Overwrite = False) -> None:
    """Write samples or prepared cases as a data set (MONAI, MSD, nnU-Net), or cases as files for viewers and archives.

    In a data set labels are numbered from 1 without gaps: --classes liver "hepatic tumor" keeps these, without it all
    that are there are kept. Images and labels are copied, along RAS. For nnU-Net the folder is called DatasetNNN_Name.
    In files labels keep their ids, names and standard codes go with them. dicom is a CT series with a SEG; seg and
    rtstruct of a DICOM folder refer to its own slices, of other files the slices are written too.
    """
    if context.args and not request.classes:
        raise typer.BadParameter(f"unexpected {context.args[0]!r}; accepted: one folder, manifest or CT")
    asked = request.model_copy(update={"classes": (*request.classes, *context.args)})
    run_task("export", asked, out, overwrite, quiet=True)
    give(str(out))
