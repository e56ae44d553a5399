"""A helper: the volumes and label maps of a result in another format. It imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi.pipelines.export_clinical import checked_clinical, write_clinical
from maisi.service.helper import answer
from maisi.space.reading import ReadOptions


def export(question: Mapping[str, Any]) -> dict[str, Any]:
    """All cases of the folder `source` as `to`, written to the working directory; gives the names of all files."""
    found = checked_clinical(Path(question["source"]), None, question["to"], reading=ReadOptions(trust_hu=True))
    write_clinical(found, Path(), None, lambda done, total: None)
    return {"files": sorted(str(path) for path in Path().rglob("*") if path.is_file())}


if __name__ == "__main__":
    os.umask(0o077)
    answer(export)
