"""As many threads as a process may keep busy, which wait asleep; trees of cgroups are made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maisi.compute.threads import (
    WAITING,
    available_cores,
    cpu_quota,
    default_threads,
    num_cores,
    wait_asleep,
    within_quota,
)


def made(folder: Path, membership: str, files: dict[str, str]) -> float | None:
    """The quota that a process sees with that /proc/self/cgroup and those files under /sys/fs/cgroup."""
    for name, text in files.items():
        (folder / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / name).write_text(text)
    (folder / "cgroup").write_text(membership)
    return cpu_quota(folder / "cgroup", folder / "fs")


V2 = "0::/user.slice/job\n"
V1 = "5:memory:/\n4:cpu,cpuacct:/docker/abc\n0::/system\n"
TREES = {
    "no limit, version 2": (V2, {"user.slice/job/cpu.max": "max 100000\n"}, None),
    "one and a half cores, version 2": (V2, {"user.slice/job/cpu.max": "150000 100000\n"}, 1.5),
    "the group around it has less": (
        V2,
        {"user.slice/job/cpu.max": "300000 100000\n", "user.slice/cpu.max": "50000 50000\n"},
        1.0,
    ),
    "the group around it has more": (
        V2,
        {"user.slice/job/cpu.max": "50000 100000\n", "user.slice/cpu.max": "400000 100000\n"},
        0.5,
    ),
    "a container that sees its group as the root": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "a name that the host gave": ("0::/../../kubepods/pod7\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 2 beside version 1": ("1:name=systemd:/\n0::/job\n", {"unified/job/cpu.max": "100000 100000\n"}, 1.0),
    "no limit, version 1": (
        V1,
        {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "version 1": (
        V1,
        {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "version 1, mounted as cpu and seen as the root": (
        V1,
        {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        0.5,
    ),
    "of cpuset there is no quota": ("3:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "50000\n"}, None),
    "what cannot be read": (V2, {"user.slice/job/cpu.max": "plenty\n"}, None),
}


@pytest.mark.parametrize("name", TREES)
def test_the_quota_is_the_least_of_all_groups(name: str, tmp_path: Path) -> None:
    membership, files, quota = TREES[name]
    assert made(tmp_path, membership, files) == quota


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "absent", tmp_path) is None


@given(cores=st.integers(0, 512), quota=st.none() | st.floats(1e-3, 1e4))
def test_there_is_a_thread_for_every_core_that_the_quota_pays_for_and_at_least_one(
    cores: int, quota: float | None
) -> None:
    threads = within_quota(cores, quota)
    assert 1 <= threads <= max(1, cores)
    if quota is not None:
        assert threads < quota + 1
        assert threads in (cores, 1) or threads >= quota


def test_processors_that_share_a_core_count_once(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        file = tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(siblings + "\n")
    assert num_cores({0, 1, 2, 3}, tmp_path) == 2
    assert num_cores({0, 2}, tmp_path) == 1
    assert num_cores({0, 1}, tmp_path) == 2
    assert num_cores({8, 9}, tmp_path) == 2  # not told: each is a core


def test_the_environment_of_the_user_counts_first() -> None:
    assert default_threads({"OMP_NUM_THREADS": "3"}) == 3
    assert default_threads({"OMP_NUM_THREADS": "5,2"}) == 5
    assert default_threads({"MKL_NUM_THREADS": "4"}) == 4
    for nonsense in ("", "0", "many", "-1"):
        assert default_threads({"OMP_NUM_THREADS": nonsense}) == available_cores() == default_threads({}) >= 1


CLEAN = {name: value for name, value in os.environ.items() if name not in WAITING}
STARTED = """
import json, os, sys
{before}
from maisi.cli import main
code = main({arguments})
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
print(json.dumps([code, "torch" in sys.modules, [os.environ.get(name) for name in names]]))
"""


def started(arguments: list[str], before: str = "", **environment: str) -> list:
    """Exit code, whether torch was imported, and the environment after a command in a process of its own."""
    code = STARTED.format(arguments=arguments, before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**CLEAN, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_command_lets_threads_wait_asleep_before_torch_is_there() -> None:
    assert started(["--version"]) == [0, False, ["PASSIVE", None]]


def test_what_the_user_says_about_waiting_stays() -> None:
    assert started(["--version"], OMP_WAIT_POLICY="ACTIVE") == [0, False, ["ACTIVE", None]]
    assert started(["--version"], GOMP_SPINCOUNT="1000") == [0, False, [None, "1000"]]


def test_nothing_is_set_where_it_is_too_late_or_from_python() -> None:
    assert started(["--version"], before="import torch") == [0, True, [None, None]]
    code = "import os, maisi; from maisi import generate; print('OMP_WAIT_POLICY' in os.environ)"
    done = subprocess.run([sys.executable, "-c", code], env=CLEAN, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_waiting_asleep_is_said_to_the_openmp_that_torch_has() -> None:
    """GNU's and LLVM's OpenMP tell what they read when they are loaded."""
    code = (
        "from maisi.compute.threads import wait_asleep; import os; os.environ['OMP_DISPLAY_ENV'] = 'true'; "
        "print(wait_asleep()); import torch; torch.ones(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=CLEAN, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True")
    if "OMP_WAIT_POLICY" in done.stderr:
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr.replace("OMP_WAIT_POLICY='", "OMP_WAIT_POLICY = '")


def test_an_environment_is_changed_once() -> None:
    environment: dict[str, str] = {"KMP_BLOCKTIME": "0"}
    assert not wait_asleep(environment)
    assert environment == {"KMP_BLOCKTIME": "0"}
