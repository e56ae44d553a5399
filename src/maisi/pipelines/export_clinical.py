"""Cases as files for viewers, archives and planning systems: DICOM series, segmentations, contours, NRRD, MetaImage."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import case_volume, own_labels
from maisi.data.door import open_labels, open_volume
from maisi.data.manifest import STORED, Case, read_manifest
from maisi.data.sources.names import safe_id
from maisi.errors import InvalidRequestError
from maisi.pipelines.clinical import ClinicalCase, Format, names_in, write_pair, write_slices, write_structures
from maisi.space.dicom import is_dicom
from maisi.space.files import log_findings
from maisi.space.origin import known_provenance
from maisi.space.reading import FileReport, ReadOptions
from maisi.space.volume import LabelMap, check_same_grid
from maisi.storage.provenance import Provenance

if TYPE_CHECKING:
    from maisi.space.dicom.slices import Slices
    from maisi.space.dicom.write_seg import Encoding

Clinical = Literal["dicom", "seg", "rtstruct", "seg.nrrd", "nrrd", "mha"]
"""What files cases may become."""

CLINICAL: tuple[str, ...] = get_args(Clinical)
_DRAWN = ("dicom", "seg", "rtstruct")
_VOLUME = re.compile(r"^(.+?)_(ct|mr)(\.nii|\.nii\.gz|\.nrrd|\.mha)?$")
_LABELS = ("_labels.nii.gz", "_labels.nii", "_labels.seg.nrrd", "_labels.nrrd", "_labels.mha", "_seg.dcm")
_ENDINGS = re.compile(r"(_ct|_mr|_labels|_seg)?(\.nii|\.nii\.gz|\.seg\.nrrd|\.nrrd|\.mha|\.mhd|\.dcm)?$")


@dataclass(frozen=True)
class Source:
    """Where a case is: files that are read when it is written."""

    id: str
    image: Path | None
    labels: Path | None
    case: Case | None = None  # of a manifest, which says more


@dataclass(frozen=True)
class ClinicalExport:
    """What is to be written: cases, the format, how a SEG is encoded, and ids to keep (all without)."""

    sources: tuple[Source, ...]
    to: Clinical
    encoding: "Encoding"
    kept: tuple[int, ...]
    reading: ReadOptions

    @property
    def files(self) -> tuple[Path, ...]:
        """All files and folders that are read."""
        return tuple(path for source in self.sources for path in (source.image, source.labels) if path is not None)


def checked_clinical(
    source: Path | None,
    labels: Path | None,
    to: Clinical,
    classes: tuple[str, ...] = (),
    encoding: "Encoding" = "auto",
    reading: ReadOptions = ReadOptions(),
) -> ClinicalExport:
    """The export of a CT, a label map, both, a manifest, or a folder of pairs.

    Raises `InvalidRequestError` for cases that such files cannot hold, `InvalidLabelsError` for unknown classes.
    """
    found = _sources(source, labels)
    twice = [id for id, count in Counter(each.id.casefold() for each in found).items() if count > 1]
    if twice:
        raise InvalidRequestError(f"two cases of {source} would have one file name: {twice[0]}; rename one of them")
    if to in ("seg", "rtstruct", "seg.nrrd"):
        without = [each.id for each in found if each.labels is None]
        if without:
            raise InvalidRequestError(f"{without[0]} has no labels to write as {to}; name them by --labels FILE")
    if to in _DRAWN:
        alone = [each.id for each in found if each.image is None]
        if alone:
            raise InvalidRequestError(
                f"{alone[0]} has labels alone, and {to} refers to the slices of their CT: name it too"
            )
    vocabulary = load_vocabulary()
    kept = tuple(sorted({id for name in classes for id in vocabulary.members(name)}))
    return ClinicalExport(found, to, encoding, kept, reading)


def _sources(source: Path | None, labels: Path | None) -> tuple[Source, ...]:
    if source is None or labels is not None or (source.is_file() and not source.name.endswith((".jsonl", ".json"))):
        named = source or labels
        if named is None:
            raise InvalidRequestError(
                "nothing to export; accepted: a CT, --labels FILE, a manifest, or a folder of pairs"
            )
        return (Source(_name(named), source, labels),)
    if source.is_dir() and not (source / STORED).is_file():
        found = _pairs(source)
        if found:
            return found
        if any(is_dicom(path) for path in sorted(source.rglob("*")) if path.is_file()):
            return (Source(_name(source), source, None),)
        raise InvalidRequestError(
            f"no case in {source}; accepted: a manifest, files NAME_ct with NAME_labels, or one DICOM series"
        )
    cases = [case for case in read_manifest(source) if case.image is not None]
    if not cases:
        raise InvalidRequestError(f"{source} has no case with an image")
    return tuple(Source(safe_id(case.id), case.image, case.labels_maisi or case.labels, case) for case in cases)


def _pairs(folder: Path) -> tuple[Source, ...]:
    found = []
    for path in sorted(folder.iterdir()):
        matched = _VOLUME.match(path.name)
        if matched is None or path.name.startswith(".") or path.is_dir() != (matched[3] is None):
            continue
        labels = next((p for end in _LABELS if (p := folder / f"{matched[1]}{end}").is_file()), None)
        found.append(Source(matched[1], path, labels))
    return tuple(found)


def _name(path: Path) -> str:
    return safe_id(_ENDINGS.sub("", path.resolve().name)) or "case"


def write_clinical(
    export: ClinicalExport, folder: Path, made: Provenance | None, on_case: Callable[[int, int], None]
) -> list[FileReport]:
    """Write all cases into a folder; gives what was found in files. `made` is for files that do not say it."""
    reports: list[FileReport] = []
    for done, source in enumerate(export.sources, start=1):
        case, found = _read(source, export, made)
        reports += found
        _write(case, source, export, folder)
        on_case(done, len(export.sources))
    return reports


def _read(source: Source, export: ClinicalExport, made: Provenance | None) -> tuple[ClinicalCase, list[FileReport]]:
    reports = []
    volume, labels = None, None
    if source.case is not None:
        volume, labels = case_volume(source.case), own_labels(source.case)
    else:
        if source.image is not None:
            volume, report = open_volume(source.image, export.reading)
            reports.append(report)
        if source.labels is not None:
            labels, report = open_labels(source.labels, export.reading)
            reports.append(report)
    for report in reports:
        log_findings(report.path, report.findings)
    if volume is not None and labels is not None:
        check_same_grid(labels, volume)
        labels = LabelMap(labels.array, volume.grid)
    made_by = [(known_provenance(path) if path else None) or made for path in (source.image, source.labels)]
    case = ClinicalCase(source.id, volume, _kept(labels, export.kept), load_vocabulary(), made_by[0], made_by[1])
    return case, reports


def _kept(labels: LabelMap | None, ids: tuple[int, ...]) -> LabelMap | None:
    if labels is None or not ids:
        return labels
    return LabelMap(np.where(np.isin(labels.array, ids), labels.array, 0).astype(labels.array.dtype), labels.grid)


def _write(case: ClinicalCase, source: Source, export: ClinicalExport, folder: Path) -> None:
    if export.to in _DRAWN:
        _write_dicom(case, source, export, folder)
        return
    form: Format = "mha" if export.to == "mha" else "nrrd"
    names = names_in(form, source.id, "ct" if case.volume is None else case.volume.modality)
    if export.to == "seg.nrrd":
        case = replace(case, volume=None)
    write_pair(
        _naming(case, names["volume"], names["labels"]), form, folder / names["volume"], folder / names["labels"]
    )


def _naming(case: ClinicalCase, volume: str, labels: str) -> ClinicalCase:
    """The case, what this export alone has made being called by the names of its files."""
    made = [
        told if told is None or told.file else told.of(name)
        for told, name in ((case.volume_made, volume), (case.labels_made, labels))
    ]
    return replace(case, volume_made=made[0], labels_made=made[1])


def _write_dicom(case: ClinicalCase, source: Source, export: ClinicalExport, folder: Path) -> None:
    """The series, unless labels alone are asked for of a series that is DICOM already, and the labels on it."""
    kind: Literal["seg", "rtstruct"] = "rtstruct" if export.to == "rtstruct" else "seg"
    series, labels = f"{source.id}/ct", f"{source.id}/{kind}.dcm"
    case = _naming(case, series, labels)
    (folder / source.id).mkdir()
    given = None if export.to == "dicom" or source.image is None else _slices_of(source.image, export.reading)
    slices = write_slices(case, folder / series) if given is None else given
    if case.labels is not None:
        write_structures(case, slices, folder / labels, kind, export.encoding)


def _slices_of(image: Path, reading: ReadOptions) -> "Slices | None":
    """The slices of a DICOM series; None for files of other formats."""
    from maisi.space.dicom.series import read_slices

    if not image.is_dir():
        return None
    return read_slices(image, reading)
