"""Labels as a DICOM segmentation (PS3.3 A.51, A.93) of a CT series, by highdicom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
from pydicom.sr.coding import Code as DicomCode

from maisi.space.checks import bad_labels
from maisi.space.dicom.identity import MANUFACTURER, NO_DATE, NO_TIME, Study, coded, description, mark, model_of
from maisi.space.dicom.slices import Slices
from maisi.space.segments import Code, Segment
from maisi.space.volume import LabelMap

Encoding = Literal["auto", "binary", "labelmap"]
MOST_BINARY = 20
"""Segments up to which "auto" writes BINARY, which every viewer reads; above, LABELMAP is far smaller."""

SERIES = "seg"
_ARTIFICIAL_INTELLIGENCE = Code(value="123110", meaning="Artificial Intelligence", scheme="DCM")  # PS3.16 CID 7162


def write_seg(
    labels: LabelMap,
    segments: Sequence[Segment],
    slices: Slices,
    path: Path,
    study: Study,
    encoding: Encoding = "auto",
) -> None:
    """Write a SEG of the structures that a label map shows, on the slices of its CT.

    BINARY numbers the structures from 1 in the order of their ids; LABELMAP keeps the ids. Raises `InvalidLabelsError`
    for a map without structures.
    """
    present = [segment for segment in segments if (labels.array == segment.id).any()]
    if not present:
        raise bad_labels(path, "a label map without structures to write", "one structure or more")
    is_binary = encoding == "binary" or (encoding == "auto" and len(present) <= MOST_BINARY)
    numbers = {segment.id: number if is_binary else segment.id for number, segment in enumerate(present, start=1)}
    dataset = hd.seg.Segmentation(
        source_images=list(slices.images),
        pixel_array=_numbered(slices.laid(labels, path), numbers),
        segmentation_type="BINARY" if is_binary else "LABELMAP",
        segment_descriptions=[_description(segment, numbers[segment.id], study) for segment in present],
        series_instance_uid=study.uid(SERIES),
        series_number=2,
        sop_instance_uid=study.uid(SERIES, is_binary, sorted(numbers)),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model_of(study),
        software_versions=study.version,
        device_serial_number="0",
        content_description=(description(study) or "Label map")[:64],
        content_label="LABELS",
        omit_empty_frames=is_binary,
    )
    _settle(dataset, study)
    dataset.save_as(path, enforce_file_format=True)


def _numbered(ids: np.ndarray, numbers: dict[int, int]) -> np.ndarray:
    """Segment numbers `[slice row column]`, 0 where none of the structures is."""
    table = np.zeros(int(ids.max()) + 1, np.uint8 if max(numbers.values()) < 256 else np.uint16)
    for id, number in numbers.items():
        table[id] = number
    return np.ascontiguousarray(table[ids].transpose(2, 1, 0))


def _description(segment: Segment, number: int, study: Study) -> Any:
    told = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:64],
        segmented_property_category=_dicom(segment.category),
        segmented_property_type=_dicom(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="maisi", version=study.version, family=_dicom(_ARTIFICIAL_INTELLIGENCE)
        ),
        tracking_uid=study.uid(SERIES, "tracking", segment.id),
        tracking_id=segment.name,
        anatomic_regions=[_dicom(segment.region)] if segment.region is not None else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
    if segment.laterality is not None:
        told.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            coded(segment.laterality)
        ]
    if segment.region is not None and segment.region_laterality is not None:
        told.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded(segment.region_laterality)]
    return told


def _dicom(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning)


def _settle(dataset: Any, study: Study) -> None:
    """Make what highdicom draws or takes off the clock follow from the study, and mark what is synthetic."""
    dataset.SeriesDescription = "Labels"
    dataset.ContentDate, dataset.ContentTime = NO_DATE, NO_TIME
    for name in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if name in dataset:
            delattr(dataset, name)
    organization = study.uid(SERIES, "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    mark(dataset, study)
