"""`maisi generate`: volumes with their labels, of one request or of many."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, give_json, tell
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import TOLD, exit_on_failures, run_task, tell_cost, tell_kept
from maisi.pipelines.requests import GenerateRequest
from maisi.storage.folders import FAILED

OF_IMAGES = (
    "reading.modality", "reading.series", "reading.acquisition", "reading.hu_offset", "reading.hu_window",
    "reading.trust_hu",
)  # fmt: skip

Requests = Annotated[
    Path | None,
    typer.Option("--requests", metavar="FILE", help="Draw every sample from the distributions in a YAML file."),
]
Workers = Annotated[int | None, typer.Option("--workers", help="With --requests: processes, side by side.")]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="With --requests: part I of N only, for array jobs.")
]
Ray = Annotated[
    str | None, typer.Option("--ray", help="With --requests: spread over a Ray cluster: its address, or local.")
]


@takes(GenerateRequest, leave_out=("compute.ranks", "controlnet_scale", *OF_IMAGES))
def generate(
    request: GenerateRequest,
    out: Out,
    requests: Requests = None,
    workers: Workers = None,
    shard: Shard = None,
    ray: Ray = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make CT volumes with the label maps that belong to them.

    Writes sample_000_ct, sample_000_labels, a report of its quality and a preview for each sample, run.yaml (repeats
    the run) and run.json. Samples that fail their check after all tries are kept in failed; then it exits with 1. With
    torchrun -m maisi generate ... several processes make each volume together. Asked for again after a kill, it goes
    on where it stopped. With --requests every sample is another one, and manifest.jsonl and summary.html tell of all.
    """
    across = {
        name: value for name, value in (("workers", workers), ("shard", shard), ("ray", ray)) if value is not None
    }
    if requests is not None:
        _generate_many(request, requests, out, across, overwrite, as_json)
        return
    if across:
        raise typer.BadParameter(f"--{next(iter(across))} spreads the samples of --requests FILE, and there is none")
    record = run_task("generate", request, out, overwrite, quiet=as_json)
    if record is None:  # the first rank tells
        return
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell_cost(record.num_made, record)
    tell_kept(record.kept)
    exit_on_failures(record.failed, f"{len(record.failed)} failed the check, see {out / FAILED}")


def _generate_many(
    options: GenerateRequest, file: Path, out: Path, across: Mapping[str, object], overwrite: bool, as_json: bool
) -> None:
    from maisi.compute.across import Across
    from maisi.pipelines.many.requests import read_requests
    from maisi.storage.settings import check_settings

    if overwrite:
        raise typer.BadParameter("--requests goes on with what is there, and takes no --overwrite: use another folder")
    said = options.model_dump(mode="json", exclude_unset=True)
    request = read_requests(file, said, check_settings(Across, across))
    record = run_task("generate many", request, out, quiet=True)
    assert record is not None
    for warning in record.warnings[:TOLD]:
        tell(f"warning: {warning}")
    if len(record.warnings) > TOLD:
        tell(f"warning: and {len(record.warnings) - TOLD} more, see {out / 'summary.html'}")
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    else:
        give(str(out / "manifest.jsonl"))
        give(str(out / "summary.html"))
    tell_cost(record.num_made, record)
    tell_kept(record.kept)
    exit_on_failures(record.failed, f"{len(record.failed)} of {request.count} failed, see {out / 'summary.html'}")
