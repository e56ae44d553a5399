"""A helper: reads an upload through the one door, in a process of its own, and tells what it is.

It imports no torch. Memory, time, files, bytes and voxels are bounded: what comes from a client may be a bomb.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maisi.anatomy.region_estimator import estimate_span
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidRequestError, InvalidVolumeError, TooLargeError
from maisi.service.helper import answer, limit_memory
from maisi.service.unpacking import check_gzip, unpack
from maisi.space.files import write_labels, write_volume
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.volume import LabelMap, Volume

SHOWN = "volume.nii.gz"
BYTES_A_VOXEL = 24  # the stored values, as float32, turned, and packed
HEADER_BYTES = 1 << 16
LISTS = (".json", ".jsonl", ".yaml", ".yml")  # files that name others
_SIZES = re.compile(rb"^(?:sizes:|DimSize\s*=)((?:\s*\d{1,18})+)\s*$", re.MULTILINE | re.IGNORECASE)


def read(question: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the upload `name` in the working directory; beside it, `volume.nii.gz` as viewers take it."""
    limits = question["limits"]
    limit_memory(int(limits["voxels"]) * BYTES_A_VOXEL)
    path = _opened(Path(question["name"]), limits)
    options = ReadOptions(series=question.get("series"), numbering=question.get("numbering"))
    _check_voxels(path, int(limits["voxels"]))
    content, report = _understood(path, options, question.get("kind"))
    if path.is_dir():
        _leave_out_others(path, options.series)
    write = write_labels if isinstance(content, LabelMap) else write_volume
    write(content, Path(SHOWN))  # type: ignore[arg-type]  # each takes its own
    return {"path": str(path), **_facts(content), "findings": [each.model_dump() for each in report.findings]}


def _opened(path: Path, limits: Mapping[str, Any]) -> Path:
    """The file, or the folder that a zip was unpacked to."""
    if path.name.lower().endswith(".gz"):
        check_gzip(path, int(limits["unpacked"]))
    if not path.name.lower().endswith(".zip"):
        return path
    folder = path.with_name(path.name[: -len(".zip")] or "dicom")
    folder.mkdir()
    unpack(path, folder, max_bytes=int(limits["unpacked"]), max_files=int(limits["files"]))
    path.unlink()
    return folder


def _check_voxels(path: Path, most: int) -> None:
    """Nothing, or a `TooLargeError` for a header that speaks of more voxels, before any of them is read."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        num = _nifti_voxels(path)
    else:
        num = _raster_voxels(path) if name.endswith((".nrrd", ".mha")) else _dicom_voxels(path)
    if num > most:
        raise TooLargeError(f"{path.name} has {num} voxels; accepted: up to {most}")


def _nifti_voxels(path: Path) -> int:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nib.load(path)
        return math.prod(int(n) for n in image.shape)
    except (ImageFileError, ValueError, OSError, EOFError, ArithmeticError, LookupError, TypeError):
        return 0  # the door says what is wrong


def _raster_voxels(path: Path) -> int:
    """The most voxels that a line of the header of an NRRD or a MetaImage speaks of."""
    with path.open("rb") as file:
        lines = _SIZES.findall(file.read(HEADER_BYTES))
    return max((math.prod(int(size) for size in line.split()) for line in lines), default=0)


def _dicom_voxels(path: Path) -> int:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    tags = ["Rows", "Columns", "NumberOfFrames"]
    total = 0
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        try:
            header: Any = dcmread(file, stop_before_pixels=True, specific_tags=tags) if file.is_file() else {}
            total += (
                int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * int(header.get("NumberOfFrames") or 1)
            )
        except (InvalidDicomError, ValueError, OSError, LookupError, TypeError, AttributeError, EOFError):
            continue  # the door says what is wrong
    return total


def _leave_out_others(folder: Path, series: str | None) -> None:
    """Remove the files of other series than the chosen one, and all that is no DICOM file.

    Whoever reads the folder later finds a series and nothing else: a manifest in it could name any file of the machine.
    """
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        found = None if file.suffix.lower() in LISTS else _series_of(file)
        if found is None or series not in (None, found):
            file.unlink()
    if not any(each.is_file() for each in folder.rglob("*")):
        raise InvalidRequestError(f"{folder.name} holds no DICOM file; accepted: a zip of a DICOM series")


def _series_of(file: Path) -> str | None:
    """The UID of the series of a DICOM file, "" where it has none; None for other files."""
    from maisi.space.dicom.opening import BROKEN, is_dicom, read_header

    if not is_dicom(file):
        return None
    try:
        header, _ = read_header(file, ["SeriesInstanceUID"])
        return str(header.get("SeriesInstanceUID") or "")
    except BROKEN:
        return None


def _understood(path: Path, options: ReadOptions, kind: str | None) -> tuple[Volume | LabelMap, FileReport]:
    """What is in a file: a label map where it is said to be one, or where its values are none of a CT and all known."""
    if kind == "labels" or options.numbering is not None:
        return open_labels(path, options)
    try:
        volume, report = open_volume(path, options)
    except InvalidVolumeError:
        if kind == "image" or path.is_dir():
            raise
        return _labels_or_raise(path, options)
    if kind is None and any(each.topic == "values" and each.is_warning for each in report.findings):
        try:
            return open_labels(path, options)
        except InvalidRequestError:
            return volume, report
    return volume, report


def _labels_or_raise(path: Path, options: ReadOptions) -> tuple[LabelMap, FileReport]:
    """The label map; where it is none either, both reasons."""
    try:
        return open_labels(path, options)
    except InvalidRequestError as error:
        first = error.__context__
        both = [str(each) for each in (first, error) if each is not None]
        raise InvalidRequestError("\n".join(dict.fromkeys(both))) from error


def _facts(content: Volume | LabelMap) -> dict[str, Any]:
    grid = content.grid
    facts: dict[str, Any] = {
        "kind": "labels" if isinstance(content, LabelMap) else "image",
        "shape": list(grid.shape),
        "spacing_mm": [round(float(each), 4) for each in grid.spacing],
        "region": _region(content),
    }
    if isinstance(content, LabelMap):
        facts["structures"] = _structures(content)
    return facts


def _region(content: Volume | LabelMap) -> dict[str, str] | None:
    """The topmost and the bottommost region that it shows, where that can be told."""
    try:
        span: RegionSpan = region_span(content) if isinstance(content, LabelMap) else estimate_span(content)
    except InvalidRequestError:
        return None
    return {"top": span.top.name.lower(), "bottom": span.bottom.name.lower()}


def _structures(labels: LabelMap) -> list[dict[str, Any]]:
    vocabulary = load_vocabulary()
    counts = np.bincount(labels.array.ravel(), minlength=256)
    voxel_ml = float(np.prod(labels.grid.spacing)) / 1000
    present = [id for id in vocabulary.ids if id < len(counts) and counts[id]]
    return [{"id": id, "name": vocabulary.name(id), "ml": round(float(counts[id]) * voxel_ml, 2)} for id in present]


if __name__ == "__main__":
    os.umask(0o077)
    answer(read)
