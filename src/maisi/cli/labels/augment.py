"""`maisi labels augment`: variants of a label map by its tumours."""

from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.requests import AugmentLabelsRequest

OF_IMAGES = (
    "reading.modality", "reading.series", "reading.acquisition", "reading.hu_offset", "reading.hu_window",
    "reading.trust_hu",
)  # fmt: skip


@takes(AugmentLabelsRequest, arguments={"labels": "LABELS"}, leave_out=OF_IMAGES)
def augment(request: AugmentLabelsRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Vary the tumours of a label map within their organs, or plant new ones by --add.

    Writes sample_000_labels and a preview for each variant, run.yaml (repeats the run) and run.json. A tumour that
    moves leaves its host behind; host and tumour together keep every voxel, and nothing else changes.
    """
    run_task("labels augment", request, out, overwrite)
