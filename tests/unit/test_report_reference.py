"""The reference of reports says what the reports hold."""

import importlib.util
from pathlib import Path

import pytest

MAKE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "make.py"


def test_the_reference_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    old = [name for name, text in module.files().items() if (MAKE.parent / name).read_text(encoding="utf-8") != text]
    if old:
        pytest.fail(f"{', '.join(old)} are not up to date: python docs/reference/make.py")
