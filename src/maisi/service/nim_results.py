"""Images and masks of a job as clients of NVIDIA's service get them: on the grid and in the files asked for."""

import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from maisi.errors import InvalidRequestError, JobConflictError
from maisi.service.archive import made
from maisi.service.job import Job
from maisi.service.nim_request import NimRequest

if TYPE_CHECKING:
    from maisi.service.service import Service

_IMAGE = re.compile(r"(.+)_ct\.nii\.gz")


def packed(service: "Service", job: Job, asked: NimRequest) -> Path:
    """A zip of all images and masks of a job, for the caller to remove; `JobConflictError` where it has none."""
    names = set(job.artifacts)
    stems = [matched[1] for name in job.artifacts if "/" not in name and (matched := _IMAGE.fullmatch(name))]
    pairs = [(stem, f"{stem}_ct.nii.gz", f"{stem}_labels.nii.gz") for stem in stems]
    samples = [pair for pair in pairs if pair[2] in names]
    if not samples:
        raise JobConflictError(f"job {job.id} has no images; accepted: a job whose samples are there")
    question = {
        "source": str(service.jobs.folder_of(job.id)),
        "samples": samples,
        "size": asked.output_size,
        "spacing": asked.spacing,
        "endings": (asked.image_output_ext, asked.label_output_ext),
    }
    return made(service, "maisi.service.regridding", question)


def check_folder(said: str | None, outputs: Path | None) -> Path | None:
    """The folder that a client names, within the one that the server allows; raises `InvalidRequestError`."""
    if said is None:
        return None
    if outputs is None:
        raise InvalidRequestError(
            "local_working_dir: this service writes nowhere else; accepted: a folder below that of --outputs"
        )
    root = outputs.resolve()
    found = (root / said).resolve() if "\0" not in said else root.parent
    if not found.is_relative_to(root):
        raise InvalidRequestError(
            f"local_working_dir: {said!r} is outside of the folder of --outputs; accepted: below it"
        )
    return found


def deliver(path: Path, folder: Path) -> list[str]:
    """The files of a zip of ours, in a folder; gives their names. Each appears as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            with archive.open(entry) as source, partial.open("wb") as file:
                shutil.copyfileobj(source, file)
            partial.replace(target)
        return archive.namelist()
