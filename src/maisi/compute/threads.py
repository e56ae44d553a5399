"""How many threads to compute with on a machine that others use too, and how threads wait for each other.

Nothing here imports torch: its OpenMP library reads the environment once, when torch is imported.
"""

import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path, PurePosixPath

NUM_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
PROCESSORS = Path("/sys/devices/system/cpu")


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let threads sleep while they wait for others; False where it is too late or the user has chosen.

    By default GNU OpenMP spins for milliseconds at the end of every operation: alone that costs nothing, but beside
    another process a thread spins on the core that the one it waits for would need. For programs, not for libraries:
    it holds for the process and all that it starts, and only until torch is imported.
    """
    if "torch" in sys.modules or any(name in environment for name in WAITING):
        return False
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


def default_threads(environment: Mapping[str, str] = os.environ) -> int:
    """The threads that the environment asks for, else one for each of the `available_cores`."""
    for name in NUM_THREADS:
        asked = environment.get(name, "").partition(",")[0].strip()  # OpenMP takes a number for each level of nesting
        if asked.isdecimal() and int(asked) > 0:
            return int(asked)
    return available_cores()


def available_cores() -> int:
    """Cores that this process may keep busy, at least 1: of its affinity, and as many as its CPU quota pays for."""
    if hasattr(os, "sched_getaffinity"):
        cores = num_cores(os.sched_getaffinity(0))
    else:
        import psutil

        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return within_quota(cores, cpu_quota())


def within_quota(cores: int, quota: float | None) -> int:
    """As many of the cores as the quota pays for, rounded up; at least 1."""
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def num_cores(processors: Collection[int], folder: Path = PROCESSORS) -> int:
    """Cores behind Linux's logical processors: two that share a core are no faster at products than one."""
    return len({_read(folder / f"cpu{i}" / "topology" / "thread_siblings_list") or str(i) for i in processors})


def cpu_quota(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float | None:
    """Seconds of CPU a second that the cgroups of this process and those around them leave it; None: no limit.

    Reads Linux's cgroups of version 2 (`cpu.max`), 1 (`cpu.cfs_quota_us`) and both at once. A container may see its own
    group at the root of the mount while /proc names it as the host does: groups that are not there count as no limit.
    """
    quotas: list[float | None] = []
    for line in (_read(membership) or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            quotas += [_quota(_read(g / "cpu.max")) for m in (cgroups, cgroups / "unified") for g in _groups(m, path)]
        elif "cpu" in controllers.split(","):
            for group in (g for m in (cgroups / controllers, cgroups / "cpu") for g in _groups(m, path)):
                quotas.append(_quota(f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """Folders of a group and of those around it, up to the mount."""
    own = PurePosixPath(path)
    for group in (own, *own.parents):
        yield mount.joinpath(*(part for part in group.parts if part not in ("/", "..")))


def _quota(told: str | None) -> float | None:
    """Of "QUOTA PERIOD" in microseconds; None for "max", -1 and what is not there."""
    try:
        quota, period = (int(number) for number in (told or "").split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
