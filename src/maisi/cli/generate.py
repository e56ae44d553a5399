"""`maisi generate`: volumes with their labels."""

from maisi.cli.console import give_json
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import run_task, tell_cost
from maisi.pipelines.requests import GenerateRequest

OF_IMAGES = (
    "reading.modality", "reading.series", "reading.acquisition", "reading.hu_offset", "reading.hu_window",
    "reading.trust_hu",
)  # fmt: skip


@takes(GenerateRequest, leave_out=("compute.ranks", "controlnet_scale", "redraws", *OF_IMAGES))
def generate(request: GenerateRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Make CT volumes with the label maps that belong to them.

    Writes sample_000_ct, sample_000_labels and a preview for each sample, run.yaml (repeats the run) and run.json. With
    torchrun -m maisi generate ... several processes make each volume together. Asked for again after a kill, it goes
    on where it stopped.
    """
    record = run_task("generate", request, out, overwrite, quiet=as_json)
    if record is None:  # the first rank tells
        return
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell_cost(f"{request.count}", record)
