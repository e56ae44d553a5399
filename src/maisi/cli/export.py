"""`maisi export`: cases as a data set of another tool."""

import typer

from maisi.cli.console import give
from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.runs.requests import ExportRequest


@takes(ExportRequest, arguments={"source": "SOURCE"}, required=("to",))
def export(request: ExportRequest, context: typer.Context, out: Out, overwrite: Overwrite = False) -> None:
    """Write a folder of samples or of prepared cases as a data set of MONAI, the Decathlon (MSD) or nnU-Net.

    Labels are numbered from 1 without gaps: --classes liver "hepatic tumor" keeps these, without it all that are there
    are kept. Images and labels are copied, along RAS. For nnU-Net the folder is called DatasetNNN_Name.
    """
    if context.args and not request.classes:
        raise typer.BadParameter(f"unexpected {context.args[0]!r}; accepted: one folder or manifest")
    asked = request.model_copy(update={"classes": (*request.classes, *context.args)})
    run_task("export", asked, out, overwrite, quiet=True)
    give(str(out))
