"""Fixtures shared by all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

# before the first import of these rooms: every call is checked against its annotations, and tensors against shapes
install_import_hook(
    ["maisi.networks", "maisi.diffusion", "maisi.training"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is a float
)

if os.environ.get("MAISI_TEST_KERNEL") == "off":  # as where no compiler was when maisi was installed
    sys.modules["maisi.splitting.cpu._filtering"] = None  # type: ignore[assignment]


def _data_root() -> Path:
    named = os.environ.get("MAISI_SHARED_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real CTs; tests that need it skip where it is absent."""
    root = _data_root()
    if not (root / "manifest.json").is_file():
        pytest.skip(f"real CTs are not at {root} (set MAISI_SHARED_DATA)")
    return root


@pytest.fixture(scope="session")
def shared_cases(shared_data: Path) -> list[dict]:
    return json.loads((shared_data / "manifest.json").read_text())["cases"]


@pytest.fixture(scope="session")
def key_lists() -> Path:
    """Folder of the reference state-dict key lists."""
    root = _data_root().parent / "spec"
    if not (root / "keys_vae.txt").is_file():
        pytest.skip(f"reference key lists are not at {root}")
    return root


@pytest.fixture
def dead_mark() -> str:
    """The mark that a process which is gone has left on its temporaries."""
    code = "from maisi.storage.owners import owner_mark; print(owner_mark())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Calls as users make them, against no annotation: for what a function itself refuses."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
