"""Results packed into one zip, as they are or with their volumes in another format."""

import secrets
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from maisi.errors import InvalidRequestError
from maisi.service.job import Job

if TYPE_CHECKING:
    from maisi.service.service import Service

FORMATS = ("zip", "dicom", "seg", "rtstruct", "nrrd", "mha", "seg.nrrd")
TEMPORARY = "archives"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time inside: same files, same bytes


def pack(service: "Service", job: Job, format: str) -> Path:
    """A zip of the files of a job, for the caller to remove; `InvalidRequestError` where nothing is to convert."""
    folder = service.settings.data.absolute() / TEMPORARY
    folder.mkdir(exist_ok=True, mode=0o700)
    path, source = folder / f"{secrets.token_hex(12)}.zip", service.jobs.folder_of(job.id)
    if format != "zip":
        raise InvalidRequestError(f"results are not offered as {format} yet; accepted: zip")
    write_zip(path, ((name, source / name) for name in job.artifacts))
    return path


def write_zip(path: Path, files: Iterable[tuple[str, Path]]) -> None:
    """A zip of files by the names that they have in it; nothing is packed again that is packed already."""
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, file in files:
                if file.is_file():
                    _add(archive, name, file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.file_size = file.stat().st_size
    entry.compress_type = zipfile.ZIP_STORED if name.endswith((".gz", ".png", ".zip")) else zipfile.ZIP_DEFLATED
    with file.open("rb") as source, archive.open(entry, "w") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
