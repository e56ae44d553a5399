"""The cases of a source, whatever its layout is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from maisi.data.sources.dicom_tree import is_dicom_tree, read_dicom_tree
from maisi.data.sources.image_folder import is_image_folder, read_image_folder
from maisi.data.sources.lists import is_datalist, is_manifest, read_datalist, read_our_manifest
from maisi.data.sources.names import files_below, images_below
from maisi.data.sources.nnunet import is_nnunet, read_nnunet
from maisi.data.sources.raw import Found, PassedOver
from maisi.data.sources.totalsegmentator import is_totalsegmentator, read_totalsegmentator
from maisi.errors import InvalidRequestError, InvalidVolumeError

UNREAD = {
    ".mgz": "FreeSurfer",
    ".mgh": "FreeSurfer",
    ".hdr": "Analyze",
    ".mnc": "MINC",
}
"""Formats of images that are told and not read, by the ends of names."""

Layout = tuple[Callable[[Path], bool], Callable[[Path], Found]]


def _dataset(path: Path) -> Path:
    return path / "dataset.json" if path.is_dir() else path


LAYOUTS: dict[str, Layout] = {
    "manifest": (is_manifest, read_our_manifest),
    "nnunet": (is_nnunet, read_nnunet),
    "datalist": (lambda path: is_datalist(_dataset(path)), lambda path: read_datalist(_dataset(path))),
    "totalsegmentator": (is_totalsegmentator, read_totalsegmentator),
    "nifti": (is_image_folder, read_image_folder),
    "dicom": (is_dicom_tree, read_dicom_tree),
}
"""Layouts by name, in the order in which a source is asked whether it has them."""


def find_cases(path: Path, layout: str | None = None) -> Found:
    """The cases of a folder or file, by the layout that it has or that is said, and what was passed over.

    Raises `InvalidRequestError` where there is nothing, for a layout that nobody knows, and for a folder of none.
    """
    accepted = (
        "a folder of NIfTI, NRRD, MetaImage or DICOM files, a dataset of MSD, nnU-Net or TotalSegmentator, a datalist, "
        "a manifest"
    )
    if not path.exists():
        raise InvalidRequestError(f"nothing at {path}; accepted: {accepted}")
    if layout is not None and layout not in LAYOUTS:
        raise InvalidRequestError(f"unknown layout {layout!r}; accepted: {', '.join(LAYOUTS)}")
    for name, (has, read) in LAYOUTS.items():
        if name == layout or (layout is None and _asked(has, path)):
            found = _with_unread(read(path), path)
            if name == "dicom" and path.is_dir():
                beside = (PassedOver(file, "an image file among DICOM series") for file in images_below(path))
                found = replace(found, passed_over=(*found.passed_over, *beside))
            if found.cases:
                return found
            passed = [f"{each.path.name} ({each.why})" for each in found.passed_over[:3]]
            why = f"; passed over: {', '.join(passed)}" if passed else ""
            raise InvalidRequestError(f"no case in {path} ({found.layout}){why}; accepted: {accepted}")
    unread = unread_in(path)
    if unread:
        raise InvalidRequestError(f"no case in {path}: {unread[0].path.name} is {unread[0].why}")
    raise InvalidRequestError(f"{path} has no layout that is known here; accepted: {accepted}")


def _with_unread(found: Found, path: Path) -> Found:
    """What was found, with the files in the same folder whose format is not read."""
    known = {each.path for each in found.passed_over}
    more = tuple(each for each in unread_in(path) if each.path not in known)
    return replace(found, passed_over=found.passed_over + more)


def unread_in(path: Path) -> tuple[PassedOver, ...]:
    """The images in a folder, or the file itself, whose format is not read here."""
    files = files_below(path, lambda name: _format(name) is not None) if path.is_dir() else [path]
    return tuple(
        PassedOver(file, f"{format}, which is not read; accepted: NIfTI, NRRD, MetaImage or DICOM", is_unread=True)
        for file in files
        if (format := _format(file.name)) is not None
    )


def _format(name: str) -> str | None:
    return UNREAD.get(Path(name).suffix.lower())


def _asked(has: Callable[[Path], bool], path: Path) -> bool:
    try:
        return has(path)
    except InvalidVolumeError:  # an empty folder
        return False
