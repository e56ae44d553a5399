"""The files of one case in the formats of scanners, viewers and planning systems."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maisi.anatomy.codes import segments_of
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import Vocabulary
from maisi.errors import InvalidRequestError
from maisi.space.files import write_labels, write_volume
from maisi.space.segments import Segment
from maisi.space.volume import LabelMap, Volume
from maisi.storage.provenance import Provenance

if TYPE_CHECKING:
    from maisi.space.dicom.slices import Slices
    from maisi.space.dicom.write_seg import Encoding

Format = Literal["nii.gz", "nii", "nrrd", "mha", "dicom"]
"""What volumes and label maps are written as; "dicom" is a folder of slices and a segmentation."""

_BODY_PARTS = {  # DICOM PS3.16 annex L: terms of BodyPartExamined, by the ends of a span
    (BodyRegion.HEAD, BodyRegion.HEAD): "HEAD",
    (BodyRegion.CHEST, BodyRegion.CHEST): "CHEST",
    (BodyRegion.CHEST, BodyRegion.ABDOMEN): "CHESTABDOMEN",
    (BodyRegion.CHEST, BodyRegion.LOWER): "CHESTABDPELVIS",
    (BodyRegion.ABDOMEN, BodyRegion.ABDOMEN): "ABDOMEN",
    (BodyRegion.ABDOMEN, BodyRegion.LOWER): "ABDOMENPELVIS",
    (BodyRegion.LOWER, BodyRegion.LOWER): "PELVIS",
}


@dataclass(frozen=True)
class ClinicalCase:
    """A volume, labels on its grid, or both; what they are called, and what made each of them."""

    name: str
    volume: Volume | None
    labels: LabelMap | None
    vocabulary: Vocabulary
    volume_made: Provenance | None = None
    labels_made: Provenance | None = None
    span: RegionSpan | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The structures of the labels with names, colours and codes."""
        if self.labels is None:
            return ()
        return segments_of(self.vocabulary.check_ids(self.labels.array), self.vocabulary)

    @property
    def body_part(self) -> str:
        """The term of DICOM for what the volume shows."""
        return "WHOLEBODY" if self.span is None else _BODY_PARTS.get((self.span.top, self.span.bottom), "WHOLEBODY")


def names_in(form: Format, stem: str, image: str) -> dict[str, str]:
    """What volume and labels of a case are called, `image` being ct or mr."""
    if form == "dicom":
        return {"volume": f"{stem}_{image}", "labels": f"{stem}_seg.dcm"}
    labels = "seg.nrrd" if form == "nrrd" else form
    return {"volume": f"{stem}_{image}.{form}", "labels": f"{stem}_labels.{labels}"}


def write_pair(case: ClinicalCase, form: Format, volume: Path, labels: Path | None) -> None:
    """Write volume and labels, the latter where there are some."""
    if form == "dicom":
        slices = write_slices(case, volume)
        if labels is not None and case.labels is not None:
            write_structures(case, slices, labels, "seg")
        return
    if case.volume is not None:
        write_volume(case.volume, volume, case.volume_made)
    if labels is not None and case.labels is not None:
        write_labels(case.labels, labels, case.labels_made, case.segments)


def write_slices(case: ClinicalCase, folder: Path) -> "Slices":
    """Write the volume as a CT series."""
    from maisi.space.dicom.identity import Study
    from maisi.space.dicom.write_ct import write_ct

    if case.volume is None:
        raise InvalidRequestError(f"{case.name} has labels alone; DICOM needs the CT that they are drawn on")
    return write_ct(case.volume, folder, Study.of(case.volume, case.name, case.volume_made, case.body_part))


def write_structures(
    case: ClinicalCase, slices: "Slices", path: Path, kind: Literal["seg", "rtstruct"], encoding: "Encoding" = "auto"
) -> None:
    """Write the labels as a SEG or an RT-STRUCT of slices."""
    from maisi.space.dicom.identity import Study
    from maisi.space.dicom.write_rtstruct import write_rtstruct
    from maisi.space.dicom.write_seg import write_seg

    assert case.labels is not None
    study = Study.of(case.labels, case.name, case.labels_made, case.body_part)
    if kind == "seg":
        write_seg(case.labels, case.segments, slices, path, study, encoding)
    else:
        write_rtstruct(case.labels, case.segments, slices, path, study)
