"""What the files of a folder are: CT images, what may lie beside them, and what is damaged."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from maisi.errors import InvalidVolumeError
from maisi.space.checks import bad_volume
from maisi.space.dicom.opening import broken_refused, plain, read_header
from maisi.space.dicom.plane import TAGS

CT_CLASSES = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
WITHOUT_POSITION = "CT sheet without a position"

_SCOUT = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"}  # among the values of ImageType
_LISTED = 8  # how many examples a message shows
_COMPANIONS = re.compile(  # names of what lies beside slices and is none
    r"(readme|licen[cs]e|notice|copying|changelog|authors|contributors|version|manifest|index|makefile|lockfile"
    r"|checksums|md5sums|sha(1|256)sums|dicomdir)(\..*)?"
    r"|.*\.(txt|md|rtf|log|csv|tsv|json|xml|ya?ml|toml|ini|inf|cfg|url|lst|html?|css|js|py|sh|sql|db|exe|dll"
    r"|docx?|xlsx?|od[ts]|pdf|png|jpe?g|gif|bmp|tiff?|svg|md5|sha1|sha256|gz|zip|tar|nii|nrrd|mh[ad]|bval|bvec)"
)


@dataclass(frozen=True, eq=False)
class Scanned:
    """One file of a folder. `kind` is "CT" for an image that can be a slice; `fault` tells what is damaged."""

    path: Path
    kind: str
    series: str = ""  # SeriesInstanceUID, where the file has one
    fault: str | None = None
    header: Any = None  # the pydicom data set of `TAGS`


def scan(folder: Path) -> list[Scanned]:
    """What each file of a folder and of its subfolders is; hidden files (a name with a dot in front) are not opened.

    What is not DICOM by its content is a companion where its name says so (a text, a table, a picture, a README, a
    checksum); under any other name, and where it is empty or cut short, it is damaged: it may have been a slice.
    """
    if folder.is_file():
        return [_scanned(folder)]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(folder))]
    if not files:
        raise bad_volume(folder, "an empty folder", "a folder of one DICOM CT series")
    return [_scanned(path) for path in files]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _scanned(path: Path) -> Scanned:
    try:
        with broken_refused(path):
            if path.stat().st_size == 0:
                return _foreign(path, "an empty file")
            try:
                header, fault = read_header(path, TAGS)
            except InvalidDicomError:
                return _foreign(path, "not DICOM")
            return _judged(path, header, fault)
    except InvalidVolumeError as error:
        return Scanned(path, "damaged", fault=f"a file that cannot be decoded ({plain(error.__cause__ or error)})")


def _foreign(path: Path, fault: str) -> Scanned:
    if _COMPANIONS.fullmatch(path.name.lower()):
        return Scanned(path, "not DICOM")
    return Scanned(path, "not DICOM", fault=fault)


def _judged(path: Path, header: Any, fault: str | None) -> Scanned:
    series = str(header.get("SeriesInstanceUID") or "")
    classes = {str(c) for c in (header.get("SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID")) if c}
    modality = str(header.get("Modality") or "")
    if len(classes) > 1:
        return Scanned(
            path, "DICOM of two kinds", series, f"a DICOM file of two classes, {' and '.join(sorted(classes))}"
        )
    sop_class = UID(next(iter(classes), ""))
    if sop_class and (not sop_class.is_valid or (not sop_class.is_private and sop_class.name == sop_class)):
        return Scanned(path, "DICOM of no kind", series, f"a DICOM file of the unknown class {str(sop_class)[:40]!r}")
    if sop_class == MediaStorageDirectoryStorage:
        return Scanned(path, "DICOMDIR")
    if not sop_class and not modality:
        return Scanned(path, "DICOM of no kind", series, "a DICOM file that names neither its class nor its modality")
    if sop_class not in CT_CLASSES and (sop_class or modality != "CT"):
        return Scanned(path, _other_kind(modality, sop_class), series)
    if modality not in ("", "CT"):
        return Scanned(path, modality, series, f"an image of the class CT that names the modality {modality}")
    missing = [name for name in ("Rows", "Columns", "BitsAllocated") if not header.get(name)]
    fault = fault or (f"no {', '.join(missing)}" if missing else None)
    samples = header.get("SamplesPerPixel") or 1
    if samples not in (1, 3, 4):
        fault = fault or f"{samples} samples a pixel"
    return Scanned(path, _ct_kind(header), series or ("" if fault else "without UID"), fault, header)


def _other_kind(modality: str, sop_class: UID) -> str:
    if modality == "CT":
        return f"CT as {sop_class.name}"
    return modality or sop_class.name


def _ct_kind(header: Any) -> str:
    if {str(value).upper() for value in header.get("ImageType") or []} & _SCOUT:
        return "CT localizer"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "CT picture in colour"
    is_placed = header.get("ImagePositionPatient") or "PerFrameFunctionalGroupsSequence" in header
    if not is_placed and int(header.get("NumberOfFrames") or 1) == 1:
        return WITHOUT_POSITION
    return "CT"


def check_whole(scanned: Sequence[Scanned], series: str, folder: Path) -> None:
    """Nothing, or the refusal that names what is damaged among the files of a series.

    A damaged file that tells one of the series here belongs to that one. One that does not belongs to the series that
    lie in its folder, and to all where none does.
    """
    folders: dict[Path, set[str]] = defaultdict(set)
    for file in scanned:
        if file.kind == "CT" and file.fault is None:
            folders[file.path.parent].add(file.series)
    whole = set().union(*folders.values())
    damaged = [
        file
        for file in scanned
        if file.fault and series in ({file.series} & whole or folders[file.path.parent] or {series})
    ]
    if not damaged:
        return
    reasons = [f"{relative(file.path, folder)} ({file.fault})" for file in damaged]
    count = "1 damaged file" if len(damaged) == 1 else f"{len(damaged)} damaged files"
    raise bad_volume(
        folder,
        f"{count} among the slices: {listed(reasons)}",
        "whole slices (without these some may be missing); take away what is no slice",
    )


def summary(scanned: Iterable[Scanned], folder: Path) -> str:
    """How many files of each kind, with their names."""
    names: dict[str, list[str]] = defaultdict(list)
    for file in scanned:
        names[file.kind if file.fault is None else f"{file.kind}: {file.fault}"].append(relative(file.path, folder))
    return "; ".join(f"{len(paths)} {kind} ({listed(paths)})" for kind, paths in sorted(names.items()))


def relative(path: Path, folder: Path) -> str:
    """The name of a file as the user of the folder knows it."""
    return str(path.relative_to(folder)) if path != folder else path.name


def listed(items: Sequence[str]) -> str:
    """The first of many, and how many more."""
    shown = ", ".join(items[:_LISTED])
    return shown if len(items) <= _LISTED else f"{shown} and {len(items) - _LISTED} more"
