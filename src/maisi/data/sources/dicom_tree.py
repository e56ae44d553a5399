"""Trees of DICOM files: a case for each series, whatever the folders are called."""

import os
import warnings
from collections import defaultdict
from pathlib import Path

import pydicom

from maisi.data.sources.names import safe_id
from maisi.data.sources.raw import Found, PassedOver, RawCase
from maisi.space.dicom.scan import Scanned, scan

_TAGS = {"sex": "PatientSex", "age": "PatientAge", "study": "StudyInstanceUID", "protocol": "ProtocolName"}
_BYSTANDERS = ("not DICOM", "DICOMDIR")


def is_dicom_tree(path: Path) -> bool:
    """Whether some file of it is DICOM with a series."""
    return any(each.series for each in scan(path))


def read_dicom_tree(path: Path) -> Found:
    """A case for each series of slices; patient, sex and age from its tags.

    Passed over are scouts, what is no image of slices, and files of no series. A series of MR is a case too: reading it
    refuses it with what to do.
    """
    series: dict[str, list[Scanned]] = defaultdict(list)
    passed = []
    for each in scan(path):
        if each.series and each.kind in ("CT", "MR"):
            series[each.series].append(each)
        elif each.kind not in _BYSTANDERS or each.fault:
            passed.append(PassedOver(each.path, each.fault or each.kind))
    cases = [_case(uid, files, path) for uid, files in series.items()]
    return Found("DICOM tree", tuple(sorted(cases, key=lambda case: case.id)), tuple(passed))


def _case(uid: str, files: list[Scanned], root: Path) -> RawCase:
    folder = Path(os.path.commonpath([each.path.parent for each in files])) if root.is_dir() else root
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values that nobody needs here
        wanted = ["PatientID", "SeriesNumber", *_TAGS.values()]
        header = pydicom.dcmread(files[0].path, stop_before_pixels=True, specific_tags=wanted, force=True)
    patient = str(header.get("PatientID") or "").strip()
    name = f"{patient or safe_id(folder.name)}_{header.get('SeriesNumber') or ''}_{uid[-8:]}"
    attributes = {key: str(header.get(tag)).strip() for key, tag in _TAGS.items() if header.get(tag)}
    return RawCase(
        id=safe_id(name.replace("__", "_")),
        image=folder,
        patient=patient or uid,
        series=uid,
        modality="ct" if files[0].kind == "CT" else "mr",
        dataset=root.name,
        attributes=attributes,
    )
