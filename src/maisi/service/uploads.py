"""Files that clients have sent: kept by random ids, with what was found in them. Imports no torch."""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from anyio import to_thread
from pydantic import Field

from maisi.compute.compute import format_bytes
from maisi.errors import InvalidRequestError, QuotaError, TooLargeError, UnknownUploadError
from maisi.service.helper import answered, ask
from maisi.service.settings import ServeSettings
from maisi.service.unpacking import plain_name
from maisi.shapes import Frozen
from maisi.space.reading import Finding
from maisi.storage.atomic import write_atomically

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".zip")
FACTS, UNFINISHED = "facts.json", ".new-"
LONGEST_UNFINISHED_S = 3600.0
CHECKED_EVERY = 64 << 20  # bytes of an upload
_ID = re.compile(r"[0-9a-f]{24}")


class UploadedStructure(Frozen):
    """A structure of an uploaded label map."""

    id: int
    name: str
    ml: float


class Regions(Frozen):
    """The topmost and the bottommost body region that an upload shows."""

    top: str
    bottom: str


class Upload(Frozen):
    """What an upload is: an image or a label map, its grid, and what was found in it."""

    id: str
    name: str
    kind: Literal["image", "labels"]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    region: Regions | None = None
    structures: tuple[UploadedStructure, ...] = ()
    findings: tuple[Finding, ...] = ()
    bytes: int = Field(default=0, description="As it was sent.")
    created: datetime


class About(Frozen):
    """What a client says about what it sends."""

    kind: Literal["image", "labels"] | None = None
    series: str | None = None
    numbering: str | None = None


class UploadStore:
    """Uploads in `folder`, for any number of threads of one process."""

    def __init__(self, folder: Path, settings: ServeSettings) -> None:
        self.folder, self.settings = folder.absolute(), settings
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def receive(self, name: str, chunks: AsyncIterator[bytes], about: About) -> Upload:
        """Write what comes, read it through the door in a process of its own, and keep it.

        Raises `InvalidRequestError` for what is no volume or label map, `TooLargeError`, and `QuotaError`.
        """
        ending = check_ending(name)
        await to_thread.run_sync(self._check_room)
        id = secrets.token_hex(12)
        draft = self.folder / f"{UNFINISHED}{id}"
        draft.mkdir(mode=0o700)
        try:
            file = draft / _with_ending(plain_name(name), ending)
            num_bytes = await self._write(chunks, file)
            facts = await answered(self._facts, file, about)
            return await to_thread.run_sync(self._keep, draft, id, file.name, num_bytes, facts)
        finally:
            await to_thread.run_sync(lambda: shutil.rmtree(draft, ignore_errors=True))

    async def _write(self, chunks: AsyncIterator[bytes], file: Path) -> int:
        total, most, checked = 0, self.settings.upload_bytes, 0
        with file.open("wb") as target:
            async for chunk in chunks:
                total += len(chunk)
                if total > most:
                    raise TooLargeError(f"{file.name} is larger than {most} bytes; accepted: up to that")
                if total - checked > CHECKED_EVERY:  # others are received at the same time
                    checked = total
                    await to_thread.run_sync(self._check_room)
                await to_thread.run_sync(target.write, chunk)
        if total == 0:
            raise InvalidRequestError(f"{file.name} is empty; accepted: the bytes of the file as the body")
        return total

    def _facts(self, file: Path, about: About) -> dict[str, Any]:
        settings = self.settings
        limits = {
            "unpacked": settings.unpacked_bytes,
            "files": settings.upload_files,
            "voxels": settings.upload_voxels,
        }
        question = {"name": file.name, "limits": limits, **about.model_dump()}
        return ask("maisi.service.reading", question, cwd=file.parent, seconds=settings.upload_seconds)

    def _keep(self, draft: Path, id: str, name: str, num_bytes: int, facts: dict[str, Any]) -> Upload:
        told = {key: value for key, value in facts.items() if key != "path"}
        upload = Upload(id=id, name=name, bytes=num_bytes, created=datetime.now(UTC), **told)
        with write_atomically(draft / FACTS) as temporary:
            temporary.write_text(
                json.dumps({"path": facts["path"], "upload": upload.model_dump(mode="json")}), encoding="utf-8"
            )
        draft.rename(self.folder / id)
        return upload

    def get(self, id: str) -> Upload:
        """What an upload is; raises `UnknownUploadError`."""
        return Upload.model_validate(self._stored(id)["upload"])

    def path_of(self, id: str) -> Path:
        """The file or folder of an upload, which counts as used now; raises `UnknownUploadError`."""
        path = self.folder / id / str(self._stored(id)["path"])
        (self.folder / id / FACTS).touch()
        return path

    def shown(self, id: str) -> Path:
        """The upload as NIfTI, along RAS and in our ids, for viewers."""
        self._stored(id)
        return self.folder / id / "volume.nii.gz"

    def remove(self, id: str) -> None:
        """Remove an upload; raises `UnknownUploadError`."""
        self._stored(id)
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def expire(self, in_use: Collection[str] = ()) -> list[str]:
        """Remove what nobody has used for as long as the settings say, and what was never finished; gives the ids."""
        now, removed = time.time(), []
        for folder in self.folder.iterdir():
            unfinished = folder.name.startswith(UNFINISHED)
            longest = LONGEST_UNFINISHED_S if unfinished else self.settings.retention * 86400
            used = _last_change(folder) if unfinished else _last_change(folder / FACTS)
            if folder.name not in in_use and used is not None and now - used > longest:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    def remove_left(self) -> None:
        """Remove what was being received when a service of this folder was killed."""
        for folder in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def bytes_used(self) -> int:
        """Bytes of all uploads on the disk."""
        return sum(_size(Path(root, name)) for root, _, names in os.walk(self.folder) for name in names)

    def _check_room(self) -> None:
        quota = self.settings.quota
        used = 0 if quota is None else self.bytes_used()
        if quota is not None and used >= quota:
            raise QuotaError(
                f"uploads take {format_bytes(used)} of {format_bytes(quota)}; accepted: remove some "
                "(DELETE /v1/uploads/ID)"
            )

    def _stored(self, id: str) -> dict[str, Any]:
        path = self.folder / id / FACTS
        if not _ID.fullmatch(id) or not path.is_file():
            raise UnknownUploadError(f"there is no upload {id!r}; accepted: the id that POST /v1/uploads gave")
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return stored


def _last_change(path: Path) -> float | None:
    """When a file, or one right in a folder, was last written; None where it is gone."""
    try:
        inside = [each.stat().st_mtime for each in path.iterdir()] if path.is_dir() else []
        return max([path.stat().st_mtime, *inside])
    except OSError:
        return None


def _size(path: Path) -> int:
    """The bytes of a file; none of one that is gone meanwhile."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_ending(name: str) -> str:
    """The ending of a name that an upload may have; raises `InvalidRequestError`."""
    ending = next((each for each in ENDINGS if name.lower().endswith(each)), None)
    if ending is None:
        raise InvalidRequestError(
            f"the name {name[:80]!r} does not say what the file is; accepted: names that end in {', '.join(ENDINGS)}"
        )
    return ending


def _with_ending(name: str, ending: str) -> str:
    """The plain name with its ending, which plainness may have cut, in small letters."""
    stem = name[: -len(ending)] if name.lower().endswith(ending) else name.partition(".")[0]
    return f"{stem or 'file'}{ending}"
