"""The CT series that a SEG or an RT-STRUCT was drawn on, looked for beside it."""

from dataclasses import dataclass
from pathlib import Path

from maisi.space.checks import bad_labels
from maisi.space.dicom.alike import without_scouts
from maisi.space.dicom.opening import broken_refused, syntax_of
from maisi.space.dicom.place import placed
from maisi.space.dicom.plane import Plane, planes_of
from maisi.space.dicom.scan import scan
from maisi.space.grid import Grid

MOST_FILES = 20_000  # that are looked at beside a file


@dataclass(frozen=True, eq=False)
class Drawn:
    """A CT series: its planes in order along their normal, the grid `[column row slice]`, its frame of reference."""

    planes: list[Plane]
    grid: Grid
    frame: str


def series_beside(path: Path, series: str) -> Drawn | None:
    """The CT series of a UID in the folder of a file and those below; None where it is not there.

    Raises `InvalidLabelsError` for a folder of too many files, `InvalidVolumeError` for a series with gaps or doubles.
    """
    folder = path.parent
    if sum(1 for _, _ in zip(folder.rglob("*"), range(MOST_FILES + 1), strict=False)) > MOST_FILES:
        what = f"more than {MOST_FILES} files beside it, among which its CT series would be looked for"
        raise bad_labels(path, what, "the file in a folder with its series alone")
    planes: list[Plane] = []
    for file in scan(folder):
        if file.kind == "CT" and file.fault is None and file.series == series:
            with broken_refused(file.path):
                planes += planes_of(file.header, file.path, str(syntax_of(file.header)))
    if not planes:
        return None
    planes, _ = without_scouts(list({plane.uid + str(plane.frame): plane for plane in planes}.values()))
    planes, grid, _ = placed(planes, folder)
    return Drawn(planes, grid, planes[0].keys.get("frame", ""))
