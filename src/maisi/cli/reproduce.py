"""`maisi reproduce`: a run again, and whether every file is the same bit for bit."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi.cli.console import complain, give, give_json, progress, tell
from maisi.cli.options import AsJson, Overwrite

if TYPE_CHECKING:
    from maisi.runs.record import RunRecord
    from maisi.runs.reproduce import PastRun


def reproduce(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="run.yaml, the folder that holds it, or a file that maisi wrote.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Keep the new files here.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Repeat a run and compare every file with the sums of its run.json; exit 1 where one differs.

    A single file (NIfTI, NRRD, MetaImage, DICOM, or the folder of a DICOM series) says itself what made it: that alone
    is made again and compared, byte by byte, or by its voxels where it was converted since.
    """
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.runs.reproduce import is_run, read_origin, read_run
    from maisi.runs.task import Watch

    is_file = not is_run(run)
    past = read_origin(run) if is_file else read_run(run)
    compute = getattr(past.request, "compute", Compute())
    with process_for(compute) as ranks, progress("reproduce") as on_stage, tempfile.TemporaryDirectory() as folder:
        place = out or Path(folder) / "run"
        again = past.repeat(place, overwrite, Watch(on_stage), ranks)
        if again is None:  # the first rank tells
            return
        if is_file:
            _tell_file(run, past, place, as_json)
        else:
            _tell_run(past, again, as_json)


def _tell_file(file: Path, past: "PastRun", folder: Path, as_json: bool) -> None:
    """Say whether a file and what its run made of it again are the same."""
    from maisi.runs.reproduce import compare
    from maisi.storage.provenance import Provenance

    made = past.record
    assert isinstance(made, Provenance)
    found = compare(file, made, folder)
    what = "same" if found.is_identical else "same voxels" if found.is_same else "differs"
    if as_json:
        give_json({"identical": found.is_identical, "same": found.is_same, "file": made.file, "seed": made.seed})
    else:
        give(f"{what}  {file}")
    if not found.is_same:
        complain(f"{file} differs from {made.file} of its own run, made again by: {made.summary}")
        raise typer.Exit(1)


def _tell_run(past: "PastRun", again: "RunRecord", as_json: bool) -> None:
    """Say which files of a run are the same, and what else has changed."""
    from maisi.runs.record import RunRecord, changed_circumstances, differences

    record = past.record
    assert isinstance(record, RunRecord)
    different, changed = differences(record, again), changed_circumstances(record, again)
    if as_json:
        give_json({"identical": not different, "different": different, "changed": changed, "outputs": again.outputs})
    else:
        for name in sorted(again.outputs.keys() | record.outputs.keys()):
            give(f"{'differs' if name in different else 'same'}  {name}")
    for line in changed:
        tell(f"note: {line}")
    if different:
        complain(f"{len(different)} of {len(record.outputs)} files differ: {', '.join(different)}")
        raise typer.Exit(1)
