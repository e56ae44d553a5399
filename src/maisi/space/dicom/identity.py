"""Who and what the DICOM files of one case are of: patient, study, equipment, unique identifiers, provenance."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from maisi.space.segments import Code
from maisi.space.volume import LabelMap, Volume
from maisi.storage.provenance import NOTICE, Provenance

PRIVATE_GROUP, PRIVATE_CREATOR, PRIVATE_ELEMENT = 0x0099, "MAISI PROVENANCE", 0x01
MANUFACTURER = "maisi"
SYNTHESIZING = Code(value="109100", meaning="Synthesizing Equipment", scheme="DCM")  # PS3.16 CID 7005
PROCESSING = Code(value="109102", meaning="Processing Equipment", scheme="DCM")
SYNTHESIS = Code(value="SYNTHESIS", meaning="Synthesis by a generative model", scheme="99MAISI")  # none in CID 7203
NO_DATE, NO_TIME = "19700101", "000000"
"""Where the standard demands a moment (type 1): files of equal requests are equal."""

_DESCRIPTION = 1024  # characters of an ST


@dataclass(frozen=True)
class Study:
    """One case: `key` is a text that no other case has, from which every UID is derived; `name` is for people."""

    key: str
    name: str
    provenance: Provenance | None = None
    body_part: str = "WHOLEBODY"

    @classmethod
    def of(
        cls, content: Volume | LabelMap, name: str, provenance: Provenance | None = None, body_part: str = "WHOLEBODY"
    ) -> "Study":
        """The study of a volume: equal voxels, place, name and provenance give equal UIDs, others others."""
        told = "" if provenance is None else provenance.text
        digest = hashlib.sha256(f"{name}\n{told}\n{content.grid.affine.tolist()}\n".encode())
        digest.update(content.array.tobytes())
        return cls(digest.hexdigest(), name, provenance, body_part)

    @property
    def is_synthetic(self) -> bool:
        return self.provenance is not None and self.provenance.is_synthetic

    @property
    def version(self) -> str:
        return "unknown" if self.provenance is None else self.provenance.maisi

    def uid(self, *parts: object) -> str:
        """A UID of this study for what `parts` name: 2.25 and a UUID of version 5 (PS3.5 B.2), from SHA-256."""
        content = hashlib.sha256("\n".join([self.key, *map(str, parts)]).encode()).digest()
        return f"2.25.{uuid.UUID(bytes=content[:16], version=5).int}"


def new_dataset(study: Study, sop_class: str, uid: str, modality: str, series: Sequence[object]) -> Any:
    """A data set of patient, study, series and equipment, marked if synthetic; `series` are parts of its UID."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid
    dataset.PatientName = "SYNTHETIC^" if study.is_synthetic else "ANONYMOUS^"
    dataset.PatientID = f"{'SYN' if study.is_synthetic else 'ANON'}-{study.key[:16].upper()}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID, dataset.StudyID = study.uid("study"), study.key[:16].upper()
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = study.name[:64]
    dataset.Modality, dataset.SeriesInstanceUID = modality, study.uid(*series)
    dataset.Manufacturer, dataset.SoftwareVersions = MANUFACTURER, study.version
    dataset.ManufacturerModelName = model_of(study)
    dataset.DeviceSerialNumber = "0"
    mark(dataset, study)
    return dataset


def model_of(study: Study) -> str:
    """The bundle that made it."""
    bundle = None if study.provenance is None else study.provenance.bundle
    return f"maisi {bundle.name} {bundle.version}"[:64] if bundle is not None else "maisi"


def mark(dataset: Any, study: Study) -> None:
    """Say in a data set that it is synthetic, and what made it: the whole request in a private element."""
    if study.is_synthetic:
        dataset.SyntheticData = "YES"
    if study.provenance is None:
        return
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(SYNTHESIZING if study.is_synthetic else PROCESSING)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, model_of(study)
    item.SoftwareVersions = study.version
    item.ContributionDescription = description(study)[:_DESCRIPTION]
    dataset.ContributingEquipmentSequence = [item]
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(PRIVATE_ELEMENT, "UT", study.provenance.text)


def description(study: Study) -> str:
    """What made it, for people."""
    told = "" if study.provenance is None else study.provenance.summary
    return f"{NOTICE}. {told}" if study.is_synthetic else told


def coded(code: Code) -> Any:
    """A code as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def provenance_text(dataset: Any) -> str | None:
    """The text that `mark` left in a data set; None where there is none."""
    try:
        block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        element = block[PRIVATE_ELEMENT]
    except KeyError:
        return None
    value = element.value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip()
