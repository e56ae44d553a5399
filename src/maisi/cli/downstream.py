"""`maisi downstream`: whether synthetic data help to train a segmentation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi.cli.console import give, give_json, give_table, steps_told, tell
from maisi.cli.options import AsJson, Assignments, Out, Overwrite

if TYPE_CHECKING:
    from maisi.downstream.experiment import DownstreamRequest

downstream = typer.Typer(help="Train segmentations with and without synthetic data.", no_args_is_help=True)


@downstream.callback()
def _group() -> None:
    pass


@downstream.command()
def run(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or a preset: sts, openkbp.")],
    out: Out,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", metavar="FILE", help="The data, in place of the experiment's own.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes side by side.")] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Spread over a Ray cluster: its address, or local to start one here.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each process.")] = None,
    assignments: Assignments = None,
    overwrite: Overwrite = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on real data alone and with synthetic cases, fold by fold, and test all on patients that nobody saw.

    Writes report.json and report.html; asked again after a kill it goes on where it stopped.
    """
    from maisi.cli.process import process_for
    from maisi.compute.across import Across
    from maisi.compute.compute import Compute
    from maisi.downstream.experiment import DownstreamRequest, read_experiment
    from maisi.downstream.report import DownstreamReport, told_rows
    from maisi.runs.carry_out import carry_out
    from maisi.runs.task import Watch
    from maisi.runs.tasks.downstream import DOWNSTREAM, PAGE, REPORT

    request = DownstreamRequest(
        experiment=read_experiment(experiment, assignments or (), manifest),
        across=Across(workers=workers, ray=ray),
        threads=threads,
    )
    if plan:
        _tell_plan(request, as_json)
        return
    with process_for(Compute(threads=threads)), steps_told() as on_stage:
        carry_out(DOWNSTREAM, request, out, overwrite=overwrite, watch=Watch(on_stage))
    found = DownstreamReport.model_validate_json((out / REPORT).read_text(encoding="utf-8"))
    if as_json:
        give_json(found.model_dump(mode="json"))
        return
    header, rows = told_rows(found)
    give_table(rows, header)
    for note in (*found.notes, *(f"{each.cell.name} failed: {each.words}" for each in found.failures)):
        tell(f"note: {note}")
    give(str(out / REPORT))
    give(str(out / PAGE))


def _tell_plan(request: "DownstreamRequest", as_json: bool) -> None:
    from maisi.runs.tasks.downstream import check

    planned = check(request).subject
    variants = planned.variants(request.experiment)
    if as_json:
        cells = [cell.model_dump() for cell in planned.cells]
        give_json({"split": planned.split.model_dump(), "synthetic": [v.id for v in variants], "cells": cells})
        return
    rows = [("patients to test", len(planned.split.test)), ("folds", len(planned.split.folds))]
    give_table([*rows, ("synthetic cases", len(variants)), ("trainings", len(planned.cells))])
