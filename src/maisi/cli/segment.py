"""`maisi segment`: the structures of a CT."""

from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.requests import SegmentRequest
from maisi.space.endings import ending_of

OF_OTHERS = (
    "compute.ranks", "compute.memory", "compute.scratch", "compute.host_memory", "compute.precision",
    "reading.numbering", "reading.modality",
)  # fmt: skip


@takes(SegmentRequest, arguments={"source": "CT"}, leave_out=OF_OTHERS)
def segment(request: SegmentRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Tell the structures of a CT: a label map on its grid.

    Writes labels.nii.gz, a preview, and structures.json, which holds the volume of each structure. With an --out that
    ends as a label map does (.nii.gz, .nrrd, .seg.nrrd, .mha) that file is written instead.
    """
    task = "segment file" if ending_of(out) else "segment"
    run_task(task, request, out, overwrite)
