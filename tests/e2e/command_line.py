"""Types that tests of the command line share."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi.space.grid import Grid


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Maisi = Callable[..., Answer]


@dataclass(frozen=True)
class Patient:
    """A phantom CT and its labels in files."""

    ct: Path
    labels: Path
    grid: Grid


def files_in(folder: Path) -> list[str]:
    """Names of all files of a folder, hidden ones and those of folders inside too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []
