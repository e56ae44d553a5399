"""`maisi labels register`: labels of a CT from labelled ones."""

from maisi.cli.options import OutFile, Overwrite, takes
from maisi.cli.run import run_task
from maisi.pipelines.requests import RegisterRequest


@takes(RegisterRequest, arguments={"source": "CT"}, required=("atlases",), leave_out=("reading.numbering",))
def register(request: RegisterRequest, out: OutFile, overwrite: Overwrite = False) -> None:
    """Label a CT by labelled ones that are deformed onto it (pseudo-labels), for `maisi prepare --segmenter`.

    Up to three atlases of the same height vote; lungs, bones and fat are where Hounsfield units show them. Needs
    elastix, of the extra `register`.
    """
    run_task("labels register", request, out, overwrite)
