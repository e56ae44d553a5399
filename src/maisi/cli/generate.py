"""`maisi generate`: volumes with their labels."""

import typer

from maisi.cli.console import complain, give_json
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import run_task, tell_cost
from maisi.pipelines.requests import GenerateRequest
from maisi.storage.folders import FAILED

TOLD = 5  # names of samples that failed

OF_IMAGES = (
    "reading.modality", "reading.series", "reading.acquisition", "reading.hu_offset", "reading.hu_window",
    "reading.trust_hu",
)  # fmt: skip


@takes(GenerateRequest, leave_out=("compute.ranks", "controlnet_scale", *OF_IMAGES))
def generate(request: GenerateRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Make CT volumes with the label maps that belong to them.

    Writes sample_000_ct, sample_000_labels, a report of its quality and a preview for each sample, run.yaml (repeats
    the run) and run.json. Samples that fail their check after all tries are kept in failed; then it exits with 1. With
    torchrun -m maisi generate ... several processes make each volume together. Asked for again after a kill, it goes
    on where it stopped.
    """
    record = run_task("generate", request, out, overwrite, quiet=as_json)
    if record is None:  # the first rank tells
        return
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell_cost(f"{request.count}", record)
    if record.failed:
        shown = ", ".join(record.failed[:TOLD]) + (", ..." if len(record.failed) > TOLD else "")
        complain(f"{len(record.failed)} failed the check, see {out / FAILED}: {shown}")
        raise typer.Exit(1)
