"""`maisi serve`: the service and its page."""

import errno
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from maisi.cli.console import give, tell
from maisi.cli.options import takes
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.service.settings import ServeSettings

if TYPE_CHECKING:
    from maisi.service.service import Service

BACKLOG = 512
CONNECTIONS = 512
Handler = Callable[[int, FrameType | None], None]


@takes(ServeSettings)
def serve(request: ServeSettings) -> None:
    """Serve jobs over HTTP, with a page at / to ask for them and to look at what comes of them.

    It listens on this machine only, unless --host says otherwise; then it asks for a token. Jobs and their results are
    kept in the folder of --data: what was asked for before a kill is carried out after it.
    """
    try:
        import uvicorn

        from maisi.service.app import create_app
        from maisi.service.service import Service
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"maisi serve needs {error.name}; accepted: an installation with it, pip install 'maisi[serve]'"
        ) from error
    listening = bound(request)
    with listening, Service.of(request).working() as service:
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        _tell(listening, service)
        server = uvicorn.Server(config)
        server.handle_exit = _told_of_the_end(service, server.handle_exit)  # type: ignore[assignment]
        server.run(sockets=[listening])


def _told_of_the_end(service: "Service", exits: Handler) -> Handler:
    """A handler of signals that has the service stop what waits, before the server does what it does."""

    def handle(number: int, frame: FrameType | None) -> None:
        service.ending.set()
        exits(number, frame)

    return handle


def _tell(listening: socket.socket, service: "Service") -> None:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    give(f"http://{shown}:{port}")
    tell(f"serving {', '.join(service.places.bundles)}; jobs and results are in {service.settings.data}")


def bound(settings: ServeSettings) -> socket.socket:
    """A socket that listens where the settings say; raises `InvalidRequestError` where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidConfigError(
            f"host: {settings.host!r} is no address ({error.strerror}); accepted: 127.0.0.1"
        ) from error
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InvalidConfigError(_why_not(settings, error)) from error
    return listening


def _why_not(settings: ServeSettings, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {settings.port} is in use; accepted: --port with a free one, or 0 to take any"
    if error.errno == errno.EACCES:
        return f"port {settings.port} is not for this user; accepted: --port 1024 or higher"
    return f"cannot listen at {settings.host}:{settings.port} ({error.strerror}); accepted: an address of this machine"
