"""Helpers of the service: they end with it, whatever they are at."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from maisi.errors import StoppedError, TooLargeError
from maisi.service.helper import ask, end_helpers

LONGEST_S = 400.0
HELPER = "maisi.service.reading"
ASKING = """
import sys
from pathlib import Path
from maisi.service.helper import ask
ask(sys.argv[1], {"name": "endless.nii.gz", "limits": {"voxels": 1000, "unpacked": 1000}}, cwd=Path(), seconds=400)
"""


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A folder with a file that nobody comes to the end of."""
    os.mkfifo(tmp_path / "endless.nii.gz")
    return tmp_path


def helper_of(process: psutil.Process) -> psutil.Process:
    """The helper that a process has asked, once there is one."""
    while True:
        for child in process.children():
            if HELPER in child.cmdline():
                return child
        time.sleep(0.02)


class SlowlyStarted(subprocess.Popen):
    """A process that is there for a while before who started it hears of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        time.sleep(1)


@pytest.mark.parametrize("kind", [subprocess.Popen, SlowlyStarted])
def test_a_helper_that_is_ended_tells_that_the_service_ends(
    endless: Path, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", kind)
    raised: list[Exception] = []

    def asking() -> None:
        question = {"name": "endless.nii.gz", "limits": {"voxels": 1, "unpacked": 1}}
        try:
            ask(HELPER, question, cwd=endless, seconds=LONGEST_S)
        except (StoppedError, TooLargeError) as error:
            raised.append(error)

    thread = threading.Thread(target=asking)
    thread.start()
    helper = helper_of(psutil.Process())
    end_helpers()
    thread.join()
    assert "the service is ending" in str(raised[0])
    assert not helper.is_running()


def test_a_helper_that_takes_too_long_is_ended(endless: Path) -> None:
    question = {"name": "endless.nii.gz", "limits": {"voxels": 1, "unpacked": 1}}
    with pytest.raises(TooLargeError, match=r"not read within 0\.5 s"):
        ask(HELPER, question, cwd=endless, seconds=0.5)
    assert not any(HELPER in each.cmdline() for each in psutil.Process().children())


def test_a_helper_whose_service_was_killed_ends(endless: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ASKING, HELPER], cwd=endless) as process:
        helper = helper_of(psutil.Process(process.pid))
        process.kill()
    assert psutil.wait_procs([helper], timeout=LONGEST_S)[1] == []
