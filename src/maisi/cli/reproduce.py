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
    from maisi.errors import InvalidRequestError
    from maisi.evaluation import reconstruction
    from maisi.pipelines import produce
    from maisi.pipelines.requests import CodecRequest, GenerateRequest
    from maisi.pipelines.runs import (
        RUN_RECORD,
        RUN_SETTINGS,
        RunRecord,
        changed_circumstances,
        differences,
        read_record,
        read_run_settings,
    )
    from maisi.pipelines.settings import checked

    path = settings_file / RUN_SETTINGS if settings_file.is_dir() else settings_file
    command, settings = read_run_settings(path)
    record = read_record(path.with_name(RUN_RECORD))

    def repeat(folder: Path) -> RunRecord:
        if command == produce.COMMAND:
            with progress("reproduce") as on_stage:
                request = checked(GenerateRequest, settings)
                made = produce.produce(request, folder, overwrite=overwrite, repeats=record, on_stage=on_stage)
                assert made is not None  # only ranks besides the first give none
                return made
        if command == reconstruction.COMMAND:
            asked = checked(CodecRequest, settings)
            return reconstruction.reconstruct_into(asked, folder, overwrite=overwrite, repeats=record)[1]
        raise InvalidRequestError(f"{path} is of `maisi {command}`, which cannot be repeated")

    if out is not None:
        again = repeat(out)
    else:
        with tempfile.TemporaryDirectory(prefix="maisi-") as folder:
            again = repeat(Path(folder))
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
