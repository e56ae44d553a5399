"""`maisi prepare`: raw scans to training cases."""

from maisi.cli.console import give, tell
from maisi.cli.options import Out, takes
from maisi.cli.run import run_task
from maisi.pipelines.prepare.settings import PrepareRequest

TOLD = 5  # refusals


@takes(PrepareRequest, arguments={"sources": "SOURCE..."}, leave_out=("reading.series", "reading.acquisition"))
def prepare(request: PrepareRequest, out: Out) -> None:
    """Turn folders of scans into training cases: checked, along RAS, labelled, on the sizes that networks need.

    Takes DICOM trees, folders of images, MONAI datalists, datasets of MSD, nnU-Net and TotalSegmentator, and manifests.
    Writes manifest.jsonl and report.html, which shows what was accepted, what was refused and why. Run it again after
    a kill, or when scans were added: what is done stays.
    """
    record = run_task("prepare", request, out, quiet=True)
    assert record is not None
    for warning in record.warnings[:TOLD]:
        tell(f"warning: {warning}")
    if len(record.warnings) > TOLD:
        tell(f"warning: and {len(record.warnings) - TOLD} more, see {out / 'report.html'}")
    give(str(out / "manifest.jsonl"))
    give(str(out / "report.html"))
