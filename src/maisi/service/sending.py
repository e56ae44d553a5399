"""Results sent to a pre-signed URL: to hosts that the server allows, over TLS, and to no private address."""

import http.client
import socket
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from maisi.errors import InvalidRequestError, RunError

TIMEOUT_S = 60.0
HTTPS = 443
_ACCEPTED = "accepted: an https URL of a host that --allow-upload-to names"


@dataclass(frozen=True)
class Target:
    """Where to send to: the address is looked up once, so that nobody can change it after the check."""

    host: str
    address: str
    path: str


def check_target(url: str | None, hosts: Collection[str]) -> Target | None:
    """The target of a URL, None where there is none; raises `InvalidRequestError` for one that is not allowed."""
    if url is None:
        return None
    if not hosts:
        raise InvalidRequestError(f"pre_signed_url: this service sends nothing elsewhere; {_ACCEPTED}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequestError(f"pre_signed_url: no URL ({error}); {_ACCEPTED}") from error
    host = (parts.hostname or "").lower()
    if parts.scheme != "https" or port not in (None, HTTPS) or parts.username is not None or not url.isascii():
        raise InvalidRequestError(f"pre_signed_url: not https, or with a port or a name in it; {_ACCEPTED}")
    if any(ord(letter) <= 0x20 for letter in url):
        raise InvalidRequestError(f"pre_signed_url: a URL has no spaces; {_ACCEPTED}")
    if host not in {each.lower() for each in hosts}:
        raise InvalidRequestError(f"pre_signed_url: host {host!r} is not allowed; {_ACCEPTED}")
    return Target(host, public_address(host), f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")


def public_address(host: str) -> str:
    """An address of a host, all of whose addresses are public; raises `InvalidRequestError`."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, HTTPS, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise InvalidRequestError(f"pre_signed_url: host {host!r} is not known ({error}); {_ACCEPTED}") from error
    private = [each for each in found if not ip_address(each.partition("%")[0]).is_global]
    if private or not found:
        raise InvalidRequestError(f"pre_signed_url: host {host!r} is at an address of a private network; {_ACCEPTED}")
    return min(found)


class _ToAddress(http.client.HTTPSConnection):
    """A connection to an address that was checked, whose certificate is that of the host."""

    def __init__(self, target: Target, context: ssl.SSLContext) -> None:
        super().__init__(target.host, HTTPS, timeout=TIMEOUT_S, context=context)
        self._target, self._tls = target, context

    def connect(self) -> None:
        """Connect to the address, and let the host prove its name."""
        plain = socket.create_connection((self._target.address, HTTPS), TIMEOUT_S)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._target.host)


def send(path: Path, target: Target) -> None:
    """Send a file by PUT, as S3, GCS and Azure take it; redirections are not followed. Raises `RunError`."""
    connection = _ToAddress(target, ssl.create_default_context())
    headers = {
        "Content-Type": "application/zip",
        "Content-Length": str(path.stat().st_size),
        "x-ms-blob-type": "BlockBlob",  # Azure asks for it
    }
    try:
        with path.open("rb") as file:
            connection.request("PUT", target.path, body=file, headers=headers)
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"the results could not be sent to {target.host}: {error}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise RunError(f"{target.host} answered {status} to the results; accepted: a URL that takes a PUT")
