"""The guide to files promises nothing that no test holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guides" / "files.md"


def rows() -> list[list[str]]:
    """The cells of the guide's rows, without those of the headings."""
    lines = [line for line in GUIDE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= {"-"} and row[-1] != "Test"]


def test_every_row_says_what_happens_and_names_its_test():
    assert len(rows()) > 80
    for row in rows():
        assert len(row) == 4, row
        assert row[0], row
        assert row[1], row
        assert re.fullmatch(r"`tests/\w+/test_\w+\.py::test_\w+(\[.+\])?`", row[3]), row


@pytest.mark.parametrize("name", sorted({row[3].strip("`") for row in rows()}))
def test_a_test_that_the_guide_names_exists(name):
    file, _, function = name.partition("::")
    function, _, parameter = function.partition("[")
    source = (ROOT / file).read_text()
    assert f"\ndef {function}(" in source
    assert not parameter or f'"{parameter.rstrip("]")}"' in source
