"""A Ray cluster: found by its address or started here, and how many cores a piece of work may have on it."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from maisi.errors import InvalidRequestError, RunError

LOCAL = "local"  # instead of the address of a cluster
STARTS = 3
ANSWERS_S = 10.0  # within which an address that nobody listens at is noticed; Ray takes minutes
_WITH_TOKEN = "a cluster that asks for a token (Ray 2.59 and later) is joined with RAY_AUTH_MODE=token"


@contextmanager
def connected(address: str | None, cores: int) -> Iterator[Any]:
    """Within, this process is connected to a cluster, whose Ray is given; to none without an address.

    What was joined or started here ends with it. Raises as `join`, and `InvalidRequestError` where no machine of the
    cluster has so many cores.
    """
    if address is None:
        yield None
        return
    ray, ours = join(address)
    try:
        if cores > (most := most_cores(ray)):
            raise InvalidRequestError(
                f"no machine of the Ray cluster has the {cores} cores of --threads; accepted: up to {most}"
            )
        yield ray
    finally:
        if ours:
            ray.shutdown()


def join(address: str) -> tuple[Any, bool]:
    """Connect this process to a cluster, or start one here; gives Ray, and whether there was no connection before.

    Raises `InvalidRequestError` without Ray, `RunError` where there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidRequestError(
            "--ray needs Ray, which is not installed; accepted: pip install 'maisi[cluster]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    if address == LOCAL:
        _start(ray)
        return ray, True
    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises no kind of its own
        said = str(error).splitlines()[0]
        raise RunError(f"there is no Ray cluster at {address!r} for us: {said}; {_WITH_TOKEN}") from error
    return ray, True


def _check_answers(address: str) -> None:
    """Raise `OSError` where nobody listens at an address HOST:PORT."""
    found = re.fullmatch(r"([^:/]+):(\d+)", address)
    if found is not None:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWERS_S).close()


def _start(ray: Any) -> None:
    """A cluster on this machine; on a busy one Ray gives up after half a minute, and is then asked again."""
    for attempt in range(STARTS):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
            return
        except Exception as error:  # Ray raises no kind of its own
            ray.shutdown()
            if attempt + 1 == STARTS:
                said = str(error).splitlines()[0]
                raise RunError(f"Ray cannot be started here, tried {STARTS} times: {said}") from error


def most_cores(ray: Any) -> int:
    """Those of the largest machine: for work that asks for more Ray waits without end.

    Raises `RunError` where no machine has any.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    most = max((int(node["Resources"].get("CPU", 0)) for node in nodes), default=0)
    if most < 1:
        raise RunError(f"none of the {len(nodes)} machines of the Ray cluster has a core to compute on")
    return most
