"""Labels in DICOM: a SEG, or an RT-STRUCT with the CT series that it was drawn on."""

from pathlib import Path
from typing import Any

from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from maisi.errors import InvalidLabelsError, InvalidVolumeError
from maisi.space.checks import bad_labels
from maisi.space.dicom.opening import BROKEN, is_dicom, plain, read_header, read_whole
from maisi.space.dicom.read_rtstruct import read_contours
from maisi.space.dicom.read_seg import read_segments
from maisi.space.stored_labels import StoredLabels

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation (PS3.6 2024d), newer than pydicom's table
READERS = {
    SegmentationStorage: read_segments,
    LABELMAP_STORAGE: read_segments,
    RTStructureSetStorage: read_contours,
}
ACCEPTED = "a DICOM SEG (BINARY or LABELMAP) or RT-STRUCT"


def read_dicom_labels(path: Path) -> StoredLabels:
    """The structures of a SEG or RT-STRUCT file along RAS, numbered, with their names.

    Where structures overlap the smaller one is kept. Contours are laid onto the CT series that they name, which is
    looked for in the file's folder and those below; so are segments, where that series is there. Raises
    `InvalidLabelsError`, with what was found and what is accepted.
    """
    try:
        dataset = read_whole(path)
        reader = READERS.get(dataset.get("SOPClassUID"))
        if reader is None:
            kind = getattr(dataset.get("SOPClassUID"), "name", "") or "an unknown class"
            raise bad_labels(path, f"a DICOM file of {kind}", ACCEPTED)
        return reader(dataset, path)
    except (InvalidLabelsError, InvalidVolumeError):
        raise
    except BROKEN as error:
        raise bad_labels(path, f"a DICOM file that cannot be decoded ({plain(error)})", "a whole file") from error


def is_label_file(path: Path) -> bool:
    """Whether a file is a SEG or RT-STRUCT."""
    return is_dicom(path) and class_of(path) in READERS


def class_of(path: Path) -> Any:
    """The SOP class of a DICOM file; None where it is damaged."""
    try:
        header, _ = read_header(path, ["SOPClassUID"])
    except BROKEN:
        return None
    return header.get("SOPClassUID")
