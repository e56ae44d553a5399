"""`maisi inpaint`: a tumour put into a CT, or a lesion taken out."""

from maisi.cli.console import give_json, tell
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import exit_on_failures, run_task, tell_cost
from maisi.pipelines.inpaint_request import InpaintRequest

TOLD = 5  # warnings


@takes(
    InpaintRequest,
    arguments={"source": "[CT]"},
    leave_out=("compute.ranks", "controlnet_scale", "reading.modality", "reading.hu_window"),
)
def inpaint(request: InpaintRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Put a tumour into a CT, or with --remove heal a lesion; all else of the CT stays as it is, bit for bit.

    Writes NAME_ct, NAME_labels, NAME_mask, a preview (before, after, difference) and NAME_quality.json, which says
    whose HU the lesion has: with --contrast reference, where the network's are off, they are those of a table. Cases of
    a manifest that cannot be done stop no other; then it exits with 1.
    """
    record = run_task("inpaint", request, out, overwrite, quiet=as_json)
    if record is None:
        return
    for warning in record.warnings[:TOLD]:
        tell(f"note: {warning}")
    if len(record.warnings) > TOLD:
        tell(f"note: and {len(record.warnings) - TOLD} more, see {out / 'run.json'}")
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell_cost("1" if request.manifest is None else "the manifest", record)
    exit_on_failures(record.failed, f"{len(record.failed)} of the cases could not be done")
