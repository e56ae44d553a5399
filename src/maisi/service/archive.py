"""Results packed into one zip, as they are or with their volumes in another format."""

import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi.errors import StoppedError
from maisi.service.helper import ENDING, ask
from maisi.service.job import Job

if TYPE_CHECKING:
    from maisi.service.service import Service

FORMATS = ("zip", "dicom", "seg", "rtstruct", "nrrd", "mha", "seg.nrrd")
TEMPORARY = "archives"
LONGEST_S = 1800.0
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time inside: same files, same bytes


def pack(service: "Service", job: Job, format: str) -> Path:
    """A zip of the files of a job, for the caller to remove; `InvalidRequestError` where nothing is to convert."""
    source = service.jobs.folder_of(job.id)
    if format == "zip":
        path = _place(service).with_suffix(".zip")
        write_zip(path, ((name, source / name) for name in job.artifacts), service.ending)
        return path
    return made(service, "maisi.service.exporting", {"source": str(source), "to": format})


def made(service: "Service", helper: str, question: dict[str, Any]) -> Path:
    """A zip of the files that a helper makes, for the caller to remove."""
    folder = _place(service)
    folder.mkdir(mode=0o700)
    try:
        told = ask(helper, question, cwd=folder, seconds=LONGEST_S)
        path = folder.with_suffix(".zip")
        write_zip(path, ((name, folder / name) for name in told["files"]), service.ending)
        return path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left(data: Path) -> None:
    """Remove archives that a service of this folder was packing when it was killed."""
    shutil.rmtree(data / TEMPORARY, ignore_errors=True)


def _place(service: "Service") -> Path:
    folder = service.settings.data.absolute() / TEMPORARY
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder / secrets.token_hex(12)


def write_zip(path: Path, files: Iterable[tuple[str, Path]], ending: threading.Event) -> None:
    """A zip of files by the names that they have in it; nothing is packed again that is packed already.

    Raises `StoppedError` where the service ends meanwhile.
    """
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, file in files:
                if file.is_file():
                    _add(archive, name, file, ending)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _add(archive: zipfile.ZipFile, name: str, file: Path, ending: threading.Event) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.file_size = file.stat().st_size
    entry.compress_type = zipfile.ZIP_STORED if name.endswith((".gz", ".png", ".zip")) else zipfile.ZIP_DEFLATED
    with file.open("rb") as source, archive.open(entry, "w") as target:
        while chunk := source.read(1 << 20):
            if ending.is_set():
                raise StoppedError(ENDING)
            target.write(chunk)
