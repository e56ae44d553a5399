"""Archives unpacked with care: so many files and bytes and no more, and nothing outside of the folder."""

import re
import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from maisi.errors import InvalidRequestError, TooLargeError

CHUNK = 1 << 20
LONGEST_NAME = 100
DEEPEST = 20  # folders within each other


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    """The files of a zip, in `folder`. Raises `InvalidRequestError` for what a zip may not hold, `TooLargeError`."""
    try:
        with zipfile.ZipFile(archive) as content:
            entries = [entry for entry in content.infolist() if not entry.is_dir()]
            _check(entries, archive, max_bytes, max_files)
            left = max_bytes
            for entry in entries:
                parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
                target = folder.joinpath(*(plain_name(part) for part in parts))
                target.parent.mkdir(parents=True, exist_ok=True)
                left -= _write(content, entry, target, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(
            f"{archive.name} is a broken zip ({' '.join(str(error).split())[:200]}); accepted: a whole one"
        ) from error


def _check(entries: list[zipfile.ZipInfo], archive: Path, max_bytes: int, max_files: int) -> None:
    if not entries:
        raise InvalidRequestError(f"{archive.name} is empty; accepted: a zip of DICOM files")
    if len(entries) > max_files:
        raise TooLargeError(f"{archive.name} holds {len(entries)} files; accepted: up to {max_files}")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", entry.filename):
            raise InvalidRequestError(
                f"{archive.name} holds {entry.filename!r}, which lies outside of it; accepted: names within the zip"
            )
        if len(path.parts) > DEEPEST:
            raise InvalidRequestError(f"{archive.name} holds folders {len(path.parts)} deep; accepted: up to {DEEPEST}")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InvalidRequestError(f"{archive.name} holds the link {entry.filename!r}; accepted: files")
        if entry.flag_bits & 1:
            raise InvalidRequestError(f"{archive.name} is encrypted; accepted: a zip without a password")
    total = sum(entry.file_size for entry in entries)
    if total > max_bytes:
        raise too_much(archive.name, max_bytes)


def _write(content: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one file and give its size; what is longer than its entry says counts as it is."""
    written = 0
    with content.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > left:
                raise too_much(entry.filename, left)
            file.write(chunk)
    return written


def check_gzip(path: Path, max_bytes: int) -> None:
    """Nothing, or a `TooLargeError` for a gzip that unpacks to more; a damaged one is for the reader to tell."""
    with path.open("rb") as file:
        unpacker, total = zlib.decompressobj(31), 0
        while chunk := file.read(CHUNK):
            while chunk:
                try:
                    total += len(unpacker.decompress(chunk, CHUNK))
                except zlib.error:
                    return
                if total > max_bytes:
                    raise too_much(path.name, max_bytes)
                chunk = unpacker.unconsumed_tail
                if unpacker.eof:
                    chunk, unpacker = unpacker.unused_data, zlib.decompressobj(31)


def too_much(name: str, max_bytes: int) -> TooLargeError:
    """The error for what unpacks to too much."""
    return TooLargeError(f"{name} unpacks to more than {max_bytes} bytes; accepted: up to that")


def plain_name(name: str) -> str:
    """The last part of a name in letters, digits, dots, lines and underscores; never hidden, never empty."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFKD", name))[-1]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", last.encode("ascii", "ignore").decode()).lstrip(".-_")
    return plain[-LONGEST_NAME:].lstrip(".-_") or "file"
