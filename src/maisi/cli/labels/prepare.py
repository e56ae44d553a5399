"""`maisi labels prepare`: label maps of any vocabulary made ours."""

from maisi.cli.console import tell
from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.label_requests import PrepareLabelsRequest

OF_IMAGES = (
    "reading.modality", "reading.series", "reading.acquisition", "reading.hu_offset", "reading.hu_window",
    "reading.trust_hu",
)  # fmt: skip


@takes(PrepareLabelsRequest, arguments={"sources": "SOURCE..."}, leave_out=OF_IMAGES)
def prepare(request: PrepareLabelsRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Turn label maps of any supported vocabulary into ours: MAISI's ids, along RAS, checked.

    Takes files, folders of masks, folders of either, and manifests. Writes NAME_labels.nii.gz for each and
    manifest.jsonl; what is refused is told, and stops nothing else.
    """
    record = run_task("labels prepare", request, out, overwrite)
    assert record is not None
    for warning in record.warnings:
        tell(f"warning: {warning}")
