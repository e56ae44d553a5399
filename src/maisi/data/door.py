"""The one door: every command reads images and label maps here, with a report of what was found and decided."""

from pathlib import Path

from maisi.space.files import read_image, read_labels
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.volume import LabelMap, Volume

_PLAIN = ReadOptions()


def open_volume(path: str | Path, options: ReadOptions = _PLAIN) -> tuple[Volume, FileReport]:
    """The volume of a NIfTI file, a DICOM file or a DICOM folder, along RAS, and what was found in it.

    Raises `InvalidVolumeError` for what is no image, is damaged, or does not look like HU, with what would be taken.
    """
    path = Path(path)
    volume, findings = read_image(path, options)
    return volume, FileReport(path=str(path), kind="volume", findings=tuple(findings))


def open_labels(path: str | Path, options: ReadOptions = _PLAIN) -> tuple[LabelMap, FileReport]:
    """The label map of a NIfTI file, along RAS, and what was found in it."""
    return read_labels(path), FileReport(path=str(path), kind="labels")
