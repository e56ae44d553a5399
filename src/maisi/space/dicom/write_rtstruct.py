"""Labels as contours, an RT structure set (PS3.3 A.19) of a CT series."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from maisi.space.checks import bad_labels
from maisi.space.contours import outlines
from maisi.space.dicom.identity import Study, coded, description, new_dataset
from maisi.space.dicom.slices import Slices
from maisi.space.grid import Grid
from maisi.space.segments import Segment
from maisi.space.volume import LabelMap

SERIES = "rtstruct"
DECIMALS = 5
"""Of the coordinates, mm: far finer than the half voxel by which a contour passes a voxel's centre."""

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; PS3.3 C.8.8.5 still asks for a class
_INTERPRETED = {"228793007": "PTV", "38266002": "EXTERNAL"}  # by SNOMED CT code; PS3.3 C.8.8.8.1
_ALTERED = "49755003"  # the category of tumours and cysts, which are no organs


def write_rtstruct(labels: LabelMap, segments: Sequence[Segment], slices: Slices, path: Path, study: Study) -> None:
    """Write closed contours of the structures that a label map shows, on the slices of its CT.

    The centres of a structure's voxels, and no others, lie within its contours. Raises `InvalidLabelsError` for a map
    without structures.
    """
    present = [segment for segment in segments if (labels.array == segment.id).any()]
    if not present:
        raise bad_labels(path, "a label map without structures to write", "one structure or more")
    ids, images = slices.laid(labels, path), slices.images
    dataset = new_dataset(study, RTStructureSetStorage, study.uid(SERIES, len(present)), "RTSTRUCT", [SERIES])
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit lengths end at 64 KiB a contour
    dataset.StudyInstanceUID = images[0].StudyInstanceUID
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        setattr(dataset, name, images[0].get(name, ""))
    dataset.SeriesNumber, dataset.SeriesDescription, dataset.OperatorsName = 3, "Contours", ""
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel, dataset.StructureSetName = "CONTOURS", study.name[:64]
    dataset.StructureSetDescription = description(study)[:1024]
    dataset.StructureSetDate = dataset.StructureSetTime = ""
    frame = images[0].FrameOfReferenceUID
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame, ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(images)]
    dataset.StructureSetROISequence = [_roi(segment, frame) for segment in present]
    dataset.ROIContourSequence = [_contours(ids, segment, slices) for segment in present]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in present]
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.save_as(path, enforce_file_format=True)


def _frame_of_reference(images: Sequence[Any]) -> Any:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(each) for each in images]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(image: Any) -> Any:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def _roi(segment: Segment, frame: str) -> Any:
    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = segment.id, frame
    item.ROIName, item.ROIGenerationAlgorithm = segment.name[:64], "AUTOMATIC"
    return item


def _observation(segment: Segment) -> Any:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = segment.id
    item.RTROIIdentificationCodeSequence = [coded(segment.type)]
    usual = "" if segment.category.value == _ALTERED else "ORGAN"
    item.RTROIInterpretedType, item.ROIInterpreter = _INTERPRETED.get(segment.type.value, usual), ""
    return item


def _contours(ids: np.ndarray, segment: Segment, slices: Slices) -> Any:
    item = Dataset()
    item.ROIDisplayColor, item.ReferencedROINumber = list(segment.colour), segment.id
    mask = ids == segment.id
    item.ContourSequence = [
        _contour(polygon, k, slices.grid, slices.images[k])
        for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist()
        for polygon in outlines(mask[:, :, k])
    ]
    return item


def _contour(polygon: np.ndarray, k: int, grid: Grid, image: Any) -> Any:
    item = Dataset()
    item.ContourImageSequence = [_reference(image)]
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
    points = grid.world(np.column_stack([polygon, np.full(len(polygon), k)])) * (-1, -1, 1)  # LPS
    text = "\\".join(f"{value:.{DECIMALS}f}" for value in (points + 0.0).ravel().tolist())
    item.add(DataElement("ContourData", "DS", text, already_converted=True))  # checked one by one it takes minutes
    return item
