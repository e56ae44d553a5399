"""`maisi generate`: volumes with their labels."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, give_json, progress, tell
from maisi.cli.options import (
    AsJson,
    Assignments,
    BundleName,
    Config,
    Device,
    HostMemory,
    Memory,
    Out,
    Overwrite,
    Precision,
    Scratch,
    Size,
    Spacing,
    Threads,
    request_of,
)


def generate(
    out: Out,
    bundle: BundleName = None,
    region: Annotated[
        str | None,
        typer.Option(help="head, chest, abdomen, lower; labels show it too.", show_default="chest"),
    ] = None,
    size: Size = None,
    spacing: Spacing = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label map to follow; without it one is drawn.")
    ] = None,
    numbering: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Whose numbers the labels have.", show_default="maisi"),
    ] = None,
    enclose: Annotated[bool, typer.Option("--enclose", help="Draw a body around labels that have none.")] = False,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Samples.", show_default="1")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same samples.", show_default="0")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", show_default="10")] = None,
    solver: Annotated[str | None, typer.Option(help="multistep, euler or ancestral.", show_default="multistep")] = None,
    modality: Annotated[str | None, typer.Option(help="What to imitate.", show_default="ct")] = None,
    precision: Precision = None,
    device: Device = None,
    memory: Memory = None,
    scratch: Scratch = None,
    host_memory: HostMemory = None,
    threads: Threads = None,
    format: Annotated[str | None, typer.Option("--format", help="nii.gz or nii.", show_default="nii.gz")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on beyond what the bundle was trained for.")] = False,
    overwrite: Overwrite = False,
    config: Config = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Make CT volumes with the label maps that belong to them.

    Writes sample_000_ct, sample_000_labels and a preview for each sample, run.yaml (repeats the run) and run.json. With
    torchrun -m maisi generate ... several processes make each volume together.
    """
    from maisi.pipelines.execution import ranks_of_run
    from maisi.pipelines.produce import produce
    from maisi.pipelines.requests import GenerateRequest
    from maisi.pipelines.sizes import format_bytes

    options = {
        "bundle": bundle,
        "region": region,
        "size": size,
        "spacing": spacing,
        "labels": labels,
        "numbering": numbering,
        "enclose": enclose or None,
        "count": count,
        "seed": seed,
        "steps": steps,
        "solver": solver,
        "modality": modality,
        "precision": precision,
        "device": device,
        "memory": memory,
        "scratch": scratch,
        "host_memory": host_memory,
        "threads": threads,
        "format": format,
        "force": force or None,
    }
    request = request_of(GenerateRequest, "generate", config, assignments, options)

    def on_sample(index: int, files: list[Path]) -> None:
        if not as_json:
            for file in files:
                give(str(file))

    with ranks_of_run() as ranks, progress("generate") as on_stage:
        record = produce(request, out, overwrite=overwrite, on_stage=on_stage, on_sample=on_sample, ranks=ranks)
    if record is None:  # the first rank tells
        return
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell(f"{request.count} in {record.seconds:.1f} s, at most {format_bytes(record.peak_bytes)}")
