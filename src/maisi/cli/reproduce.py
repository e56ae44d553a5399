"""`maisi reproduce`: a run again, and whether every file is the same bit for bit."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import complain, give, give_json, progress, tell
from maisi.cli.options import AsJson, Overwrite


def reproduce(
    settings_file: Annotated[
        Path, typer.Argument(metavar="RUN", help="run.yaml, or the folder that holds it.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Keep the new files here.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Repeat a run and compare every file with the sums of its run.json; exit 1 where one differs."""
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.runs.record import changed_circumstances, differences
    from maisi.runs.reproduce import read_run
    from maisi.runs.task import Watch

    past = read_run(settings_file)
    compute = getattr(past.request, "compute", Compute())
    with process_for(compute) as ranks, progress("reproduce") as on_stage, tempfile.TemporaryDirectory() as folder:
        again = past.repeat(out or Path(folder) / "run", overwrite, Watch(on_stage), ranks)
    if again is None:  # the first rank tells
        return
    different, changed = differences(past.record, again), changed_circumstances(past.record, again)
    if as_json:
        give_json({"identical": not different, "different": different, "changed": changed, "outputs": again.outputs})
    else:
        for name in sorted(again.outputs.keys() | past.record.outputs.keys()):
            give(f"{'differs' if name in different else 'same'}  {name}")
    for line in changed:
        tell(f"note: {line}")
    if different:
        complain(f"{len(different)} of {len(past.record.outputs)} files differ: {', '.join(different)}")
        raise typer.Exit(1)
