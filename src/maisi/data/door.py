"""The one door through which every image and label map comes, with a report of what was found and decided."""

from pathlib import Path

from maisi.space.files import read_labels, read_volume
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.volume import LabelMap, Volume


def open_volume(path: Path, options: ReadOptions = ReadOptions()) -> tuple[Volume, FileReport]:
    """The volume of a file or a DICOM folder, and what was found in it."""
    volume = read_volume(path, modality=options.modality, series=options.series)
    return volume, FileReport(path=str(path), kind="volume")


def open_labels(path: Path, options: ReadOptions = ReadOptions()) -> tuple[LabelMap, FileReport]:
    """The label map of a file in our numbering, and what was found in it."""
    return read_labels(path), FileReport(path=str(path), kind="labels")
