"""What stands before every request: who asks, from where, and how much is sent; and what every answer carries."""

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maisi.errors import TooLargeError
from maisi.service.problems import problem, respond
from maisi.service.settings import ServeSettings, is_loopback

JSON_BYTES = 1_000_000
UPLOADS, HEALTH = "/v1/uploads", "/v1/health/"
SAFE = ("GET", "HEAD", "OPTIONS")
CLOSED = ("/v1/", "/metrics")

POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "connect-src 'self'",
    "img-src 'self' blob: data:",  # previews; the picture of NiiVue's letters
    "style-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}

Seen = Callable[[Scope, int, float], None]


@dataclass(frozen=True)
class Guard:
    """An application with a guard before it; `seen` is told of each answer: the scope, the status, the seconds."""

    app: ASGIApp
    settings: ServeSettings
    token: str | None
    seen: Seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        headers = Headers(scope=scope)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            refused = self._refused(scope, headers)
            if refused is not None:
                number, detail = refused
                more = {"WWW-Authenticate": "Bearer"} if number == 401 else {}
                await respond(problem(number, detail), more)(scope, receive, answer)
                return
            await self.app(scope, _bounded(receive, self._most(scope)), answer)
        finally:
            self.seen(scope, status, time.monotonic() - started)

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """The status and the reason of a request that is not let in."""
        path, method = scope["path"], scope["method"]
        if self.token is None and not _is_own_name(headers.get("host", ""), self.settings):
            return 403, f"host {headers.get('host', '')!r} is not this service; accepted: localhost, or its address"
        origin = headers.get("origin")
        if origin is not None and method not in SAFE and not self._is_welcome(origin, headers.get("host", "")):
            return 403, f"pages of {origin!r} may not ask; accepted: --allow-origin names them"
        if self._is_closed(path, method) and not _shows(headers.get("authorization", ""), self.token or ""):
            return 401, "this service asks for a token; accepted: the header Authorization: Bearer TOKEN"
        told = headers.get("content-length", "0")
        if not told.isascii() or not told.isdigit():
            return 400, f"content-length {told!r} is no number; accepted: bytes of the body"
        if int(told) > self._most(scope):
            return 413, f"the body has {int(told)} bytes; accepted: up to {self._most(scope)}"
        return None

    def _is_closed(self, path: str, method: str) -> bool:
        return (
            self.token is not None
            and path.startswith(CLOSED)
            and not path.startswith(HEALTH)
            and method != "OPTIONS"  # a browser asks so before it shows a token
        )

    def _most(self, scope: Scope) -> int:
        return self.settings.upload_bytes if scope["path"] == UPLOADS else JSON_BYTES

    def _is_welcome(self, origin: str, host: str) -> bool:
        return origin in self.settings.allow_origin or _split(origin).netloc == host


def _split(address: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _shows(authorization: str, token: str) -> bool:
    """Whether a header shows the token, told in the same time whatever it holds."""
    scheme, _, shown = authorization.partition(" ")
    return hmac.compare_digest(shown.strip().encode(), token.encode()) and scheme.lower() == "bearer"


def _is_own_name(host: str, settings: ServeSettings) -> bool:
    """Whether a page reached this service by a name of its own, and not by one that was pointed here (rebinding)."""
    name = _split(f"//{host}").hostname or ""
    return is_loopback(name) or name == settings.host.lower()


def _bounded(receive: Receive, most: int) -> Receive:
    """What receives a body, and raises `TooLargeError` where it is longer than was said or is taken."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise TooLargeError(f"the body has more than {most} bytes; accepted: up to that")
        return message

    return bounded


def _add(headers: MutableHeaders, path: str) -> None:
    """What every answer carries, where it does not say otherwise."""
    for name, value in _defaults(path):
        headers.setdefault(name, value)


def _defaults(path: str) -> Iterable[tuple[str, str]]:
    more: Mapping[str, str] = (
        {"cache-control": "no-store"} if path.startswith(CLOSED) else {"cache-control": "no-cache"}
    )
    return (*HEADERS.items(), *more.items())
