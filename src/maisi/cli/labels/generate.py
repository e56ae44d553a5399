"""`maisi labels generate`: label maps drawn by a network."""

from maisi.cli.options import Out, Overwrite, takes
from maisi.cli.run import exit_on_failures, run_task, tell_cost, tell_kept
from maisi.pipelines.requests import GenerateLabelsRequest
from maisi.storage.folders import FAILED


@takes(GenerateLabelsRequest, leave_out=("compute.ranks",))
def generate(request: GenerateLabelsRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Draw label maps by a network, from a region and the sizes of organs.

    What --anatomy does not say is as the network likes, and tumours are absent. What it says is measured, and put right
    where the network missed it; tumours that it has not learned are planted. Writes sample_000_labels, a preview, the
    volumes asked for and obtained, and a report of its quality. Maps that fail their check after all tries are kept in
    failed; then it exits with 1.
    """
    record = run_task("labels generate", request, out, overwrite)
    if record is not None:
        tell_cost(record.num_made, record)
        tell_kept(record.kept)
        exit_on_failures(record.failed, f"{len(record.failed)} failed the check, see {out / FAILED}")
