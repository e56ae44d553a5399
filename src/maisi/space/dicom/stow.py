"""DICOM files sent to a DICOMweb server: STOW-RS (PS3.18 10.5)."""

import json
import ssl
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from maisi.errors import InvalidRequestError, RunError
from maisi.space.dicom.opening import BROKEN, is_dicom, read_header

MOST_BYTES = 64 * 2**20  # of files that go together in one request
TIMEOUT_S = 300.0
DIRECTORY = "DICOMDIR"  # what a medium's table of contents is called
_SHOWN = 300  # characters of what a server says
_REFERENCED, _FAILED, _INSTANCE, _REASON = "00081199", "00081198", "00081155", "00081197"


@dataclass(frozen=True)
class Server:
    """A DICOMweb server: the address that `/studies` follows, and the token of whom it lets in."""

    url: str
    token: str | None = None
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise InvalidRequestError(f"{self.url!r} is no address ({error}); accepted: https://HOST/PATH") from error
        if not self.url.isascii():
            raise InvalidRequestError(f"{self.url!r} is not written as addresses are sent; accepted: ASCII, with %XX")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError(f"{self.url!r} is no address of a DICOMweb server; accepted: https://HOST/PATH")
        if parts.username or parts.password:
            raise InvalidRequestError("an address with a password in it would be seen; accepted: --token")
        if self.token is not None and parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise InvalidRequestError("a token sent over http:// can be read on its way; accepted: https://")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InvalidRequestError("the token holds characters that no header may hold; accepted: printable ASCII")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Instance:
    """One file to be sent, by its SOPInstanceUID."""

    path: Path
    uid: str


def dicom_files(paths: Sequence[Path]) -> list[Instance]:
    """The DICOM files among paths and below folders, in order; files of other kinds beside them are left out.

    Raises `InvalidRequestError` for a path that is not there, a named file that is no DICOM, a folder without any, and
    two files of one SOPInstanceUID.
    """
    found: list[Instance] = []
    for path in paths:
        if not path.exists():
            raise InvalidRequestError(f"no file or folder {path}")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files = [file for file in inside if is_dicom(file) and (file.name.upper() != DIRECTORY or file == path)]
        if not files:
            what = "a folder without DICOM files" if path.is_dir() else "no DICOM file"
            raise InvalidRequestError(f"{path} is {what}; accepted: DICOM files; maisi export --to dicom makes them")
        found += [Instance(file, _uid_of(file)) for file in files]
    first: dict[str, Path] = {}
    for each in found:
        if first.setdefault(each.uid, each.path) != each.path:
            raise InvalidRequestError(f"{first[each.uid]} and {each.path} are of one SOPInstanceUID, {each.uid}")
    return list({each.path: each for each in found}.values())


def _uid_of(path: Path) -> str:
    try:
        header, _ = read_header(path, ["SOPInstanceUID"])
        uid = str(header.get("SOPInstanceUID") or "")
    except BROKEN as error:
        raise InvalidRequestError(f"{path} is a damaged DICOM file") from error
    if not uid:
        raise InvalidRequestError(f"{path} has no SOPInstanceUID")
    return uid


def batches(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Files that go together: up to `MOST_BYTES`, one at least."""
    batch: list[Instance] = []
    size = 0
    for each in instances:
        more = each.path.stat().st_size
        if batch and size + more > MOST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield batch


def store(batch: Sequence[Instance], server: Server) -> list[str]:
    """Send files in one request; gives what the server did not store, a sentence each.

    Raises `RunError` where no server answers, or answers with an error for all.
    """
    boundary = uuid.uuid4().hex
    request = Request(server.url.rstrip("/") + "/studies", data=_body(batch, boundary), method="POST")
    request.add_header("Content-Type", f'multipart/related; type="application/dicom"; boundary={boundary}')
    request.add_header("Accept", "application/dicom+json")
    if server.token is not None:
        request.add_header("Authorization", f"Bearer {server.token}")
    opener = build_opener(_NoRedirect, HTTPSHandler(context=ssl.create_default_context()))
    try:
        with opener.open(request, timeout=server.timeout_s) as answer:
            return _not_stored(answer.read(), batch)
    except HTTPError as error:
        content = error.read()
        if error.code == 409:  # some or all failed, each with its reason
            return _not_stored(content, batch)
        raise RunError(f"{server.url} answers {error.code} {error.reason}{_said(content)}") from error
    except (URLError, HTTPException, OSError) as error:
        raise RunError(f"{server.url} cannot be reached: {getattr(error, 'reason', None) or error}") from error


class _NoRedirect(HTTPRedirectHandler):
    """Follows no other address: what is sent, and the token, are for this one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _body(batch: Sequence[Instance], boundary: str) -> bytes:
    parts = []
    for each in batch:
        parts += [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), each.path.read_bytes(), b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _not_stored(content: bytes, batch: Sequence[Instance]) -> list[str]:
    """What of a batch an answer does not list as stored."""
    try:
        told = json.loads(content) if content.strip() else {}
        stored = set(_uids(told, _REFERENCED))
        reasons = {_first(item, _INSTANCE): _first(item, _REASON) for item in told.get(_FAILED, {}).get("Value", [])}
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"the server's answer is not that of STOW-RS{_said(content)}") from error
    return [
        f"{each.path} was not stored" + (f" (reason {reasons[each.uid]})" if reasons.get(each.uid) else "")
        for each in batch
        if each.uid not in stored
    ]


def _uids(told: dict[str, Any], sequence: str) -> list[str]:
    return [str(_first(item, _INSTANCE)) for item in told.get(sequence, {}).get("Value", [])]


def _first(item: dict[str, Any], tag: str) -> Any:
    return next(iter(item.get(tag, {}).get("Value", [])), None)


def _said(content: bytes) -> str:
    text = " ".join(content.decode("utf-8", "replace").split())[:_SHOWN]
    return f": {text}" if text else ""
