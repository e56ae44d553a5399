"""`maisi refine`: small structures of a CT drawn again at finer spacing."""

from maisi.cli.console import give_json
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import run_task, tell_cost
from maisi.pipelines.refine_request import RefineRequest


@takes(
    RefineRequest,
    arguments={"source": "CT"},
    required=("labels", "structures"),
    leave_out=("compute.ranks", "controlnet_scale", "reading.modality", "reading.hu_window"),
)
def refine(request: RefineRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Draw small structures of a CT again at finer spacing, with all around them held, and put them back.

    Writes NAME_ct, NAME_labels, a preview (before, after, difference) and NAME_quality.json with what it has done to
    each structure. With --spacing the whole result has that voxel size.
    """
    record = run_task("refine", request, out, overwrite, quiet=as_json)
    if record is None:
        return
    if as_json:
        give_json({"out": str(out), **record.model_dump(mode="json")})
    tell_cost("1", record)
