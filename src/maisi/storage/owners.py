"""Who a temporary file or folder belongs to, so that what a killed process left behind can be told from what is in use.

The name of everything temporary ends in a mark: host, boot, process namespace, process id, start of the process, a
random word. A folder may be shared by many hosts and containers; only what certainly belongs to a process that is gone
is ever removed.
"""

import logging
import os
import re
import secrets
import shutil
import socket
import time
from functools import cache
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_MARK = re.compile(
    r"^(?P<host>[^~]*)~(?P<boot>[0-9a-f]+)~(?P<space>[0-9a-f]+)~(?P<pid>\d+)~(?P<start>\d+)~[0-9a-f]{8}(\.|$)"
)
_BOOT_ID, _PROCESSES, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc"), Path("/proc/self/ns/pid")
_START_FIELD = 22  # of /proc/PID/stat, proc(5): starttime, in clock ticks since boot; the name before ends field 2
_FORGOTTEN_S = 7 * 24 * 3600.0


def owner_mark() -> str:
    """An ending for the name of something temporary of this process."""
    start = _start_of(os.getpid())
    return f"{_host()}~{_boot()}~{_namespace()}~{os.getpid()}~{start or 0}~{secrets.token_hex(4)}"


def is_owned(name: str, prefix: str) -> bool:
    """Whether this is `prefix` and the mark of a process."""
    return name.startswith(prefix) and _MARK.match(name.removeprefix(prefix)) is not None


def is_abandoned(path: Path, prefix: str) -> bool:
    """Whether the name is `prefix` and the mark of a process that is gone.

    Certain is only what this host can see: a process of the same boot in the same process namespace; an id that was
    given to another process meanwhile has another start. What has the name of this host but another boot may be of a
    twin of the same name: it counts as left behind when nothing in it has changed for a week.
    """
    match = _MARK.match(path.name.removeprefix(prefix)) if path.name.startswith(prefix) else None
    if match is None or match["host"] != _host():
        return False
    if match["boot"] != _boot():
        return time.time() - _last_change(path) > _FORGOTTEN_S
    if match["space"] != _namespace():
        return False
    pid = int(match["pid"])
    start = _start_of(pid)
    if start is None:  # gone, or of another user whose processes are hidden
        return not _is_there(pid)
    return start != int(match["start"])


def _is_there(pid: int) -> bool:
    """Whether there is a process of that id, of anybody, hidden ones too, which `psutil.pid_exists` denies."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the files and folders in `folder` that are called `prefix` and the mark of a process that is gone."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if not is_abandoned(entry, prefix):
            continue
        logger.info("removing %s, left by a process that died", entry)
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _last_change(path: Path) -> float:
    """The time of the last change of a file, or of a folder and what is in it; now, where it is just going away."""
    try:
        return max(entry.stat().st_mtime for entry in (path, *(path.iterdir() if path.is_dir() else ())))
    except FileNotFoundError:
        return time.time()


@cache
def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


@cache
def _boot() -> str:
    """What tells this run of the operating system from others: its boot id, else the second it was started."""
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text().strip().replace("-", "")
    return f"{int(psutil.boot_time()):x}"


@cache
def _namespace() -> str:
    """What tells process ids here from those of other containers of the same machine."""
    return f"{os.stat(_NAMESPACE).st_ino:x}" if _NAMESPACE.exists() else "0"


def _start_of(pid: int) -> int | None:
    """When a process was started, None where there is none of that id; only comparisons of it mean something."""
    stat = _PROCESSES / str(pid) / "stat"
    try:
        if _BOOT_ID.exists():
            return int(stat.read_text().rpartition(")")[2].split()[_START_FIELD - 3])
        return int(psutil.Process(pid).create_time())
    except (FileNotFoundError, ProcessLookupError, PermissionError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None
