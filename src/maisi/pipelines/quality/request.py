"""What label maps can be checked for. Imports no torch."""

from pathlib import Path

from pydantic import Field

from maisi.shapes import Frozen
from maisi.space.reading import ReadOptions


class CheckRequest(Frozen):
    """Label maps to check, alone or one of them with its CT."""

    labels: tuple[Path, ...] = Field(min_length=1, description="Label maps, folders of them, or folders of masks.")
    ct: Path | None = Field(default=None, description="The CT of the label map, on its grid: its HU are judged too.")
    reading: ReadOptions = ReadOptions()
