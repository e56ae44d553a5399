"""`maisi labels generate`: label maps drawn by a network."""

from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import run_task, tell_cost
from maisi.pipelines.requests import GenerateLabelsRequest


@takes(GenerateLabelsRequest, leave_out=("sizes", "compute.ranks"))
def generate(request: GenerateLabelsRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Draw label maps from a region and the sizes of organs.

    A size is 0 to 1, or -1 for none, such as --set sizes.liver=0.6 --set sizes.gallbladder=-1; what is not said is as
    the network likes, and tumours are absent. Writes sample_000_labels, a preview and the sizes obtained for each map.
    """
    record = run_task("labels generate", request, out, overwrite)
    if record is not None:
        tell_cost(f"{request.count}", record)
