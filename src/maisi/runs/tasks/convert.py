"""`maisi convert`: upstream's checkpoints made into a bundle."""

from pathlib import Path

from maisi.bundle.bundle import fill_bundle
from maisi.bundle.convert import assemble
from maisi.runs.requests import ConvertRequest
from maisi.runs.task import Checked, Output, Run, Task


def check(request: ConvertRequest) -> Checked[ConvertRequest]:
    """The request with the bundle that its checkpoints make."""
    request = request.model_copy(update={"checkpoints": tuple(path.resolve() for path in request.checkpoints)})
    return Checked(request)


def inputs(request: ConvertRequest) -> tuple[Path, ...]:
    """The checkpoints."""
    return request.checkpoints


def work(checked: Checked[ConvertRequest], run: Run) -> None:
    """Write the bundle."""
    request = checked.request
    bundle = assemble(
        request.checkpoints,
        name=request.name or run.name,
        model=request.model,
        scale_factor=request.scale_factor,
        licence=request.licence,
    )
    run.on_stage("convert", 1, 1)
    fill_bundle(bundle, run.partial)
    run.publish()


CONVERT = Task("convert", ConvertRequest, check, work, inputs, Output.WHOLE)
