"""`maisi labels register`: labels of a CT from labelled ones, one file."""

from pathlib import Path

from maisi.data.door import open_volume
from maisi.data.manifest import read_manifest
from maisi.errors import InvalidVolumeError
from maisi.pipelines.atlases import elastix, read_atlases, vote
from maisi.pipelines.requests import RegisterRequest
from maisi.runs.task import Checked, Output, Run, Task
from maisi.space.files import write_labels


def check(request: RegisterRequest) -> Checked[RegisterRequest]:
    """The request with its volume; `InvalidRequestError` for another image than a CT, or for no manifest."""
    elastix()
    read_manifest(request.atlases)
    volume, report = open_volume(request.source, request.reading)
    if volume.modality != "ct":
        raise InvalidVolumeError(f"{request.source} is {volume.modality}; atlases are brought onto a CT")
    return Checked(request, volume, None, (report,))


def inputs(request: RegisterRequest) -> tuple[Path, ...]:
    """The CT and the manifest of atlases."""
    return request.source, request.atlases


def work(checked: Checked[RegisterRequest], run: Run) -> None:
    """Write the labels; where atlases agree little is told."""
    request = checked.request
    atlases = read_atlases(request.atlases, request.leave_out)
    run.on_stage("load", 1, 1)
    voted = vote(checked.subject, atlases)
    run.on_stage("register", 1, 1)
    doubtful = sorted(name for name, share in voted.agreement.items() if share < request.doubtful)
    if doubtful:
        run.warnings.append(f"{', '.join(voted.atlases)} agree little on {', '.join(doubtful)}")
    write_labels(voted.labels, run.partial / run.name, run.made(run.name))
    run.publish()


REGISTER = Task("labels register", RegisterRequest, check, work, inputs, Output.FILE, (".nii", ".nii.gz"))
