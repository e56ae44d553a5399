"""Fixtures shared by all tests."""

import json
import os
from pathlib import Path

import pytest


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
