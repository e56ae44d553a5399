"""The planes of one CT image: where each lies, how its stored values become HU, and what tells it from its like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.tag import Tag

from maisi.space.checks import bad_volume

# What tells stacks of one series apart, by the name that `--acquisition` takes: attributes of a classic file or of
# its functional groups. The first that is there counts.
KEYS: dict[str, tuple[str, ...]] = {
    "acquisition": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "temporal": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "phase": ("NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase", "CardiacCyclePosition"),
    "trigger": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "stack": ("StackID",),
    "kernel": ("ConvolutionKernel",),
    "thickness": ("SliceThickness",),
    "kvp": ("KVP",),
    "image": ("ImageType",),
    "contrast": ("ContrastBolusAgent",),
    "study": ("StudyInstanceUID",),
    "frame": ("FrameOfReferenceUID",),
    "time": ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime"),
    "content": ("ContentTime",),
}
_GROUPS = (  # functional groups of Enhanced CT that hold what is read here
    "CTAcquisitionDetailsSequence",
    "CTExposureSequence",
    "CTImageFrameTypeSequence",
    "CTReconstructionSequence",
    "CardiacSynchronizationSequence",
    "FrameContentSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "RespiratorySynchronizationSequence",
    "TemporalPositionSequence",
)
TAGS = sorted(  # what is read of a header
    {
        *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesDescription"),
        *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "InstanceNumber"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "GantryDetectorTilt"),
        *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PhotometricInterpretation"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *(name for names in KEYS.values() for name in names),
    }
)
_TAG = {name: Tag(name) for name in TAGS}  # a look-up by keyword takes four times as long
_NO_HU = {"Z_EFF", "ED", "EDW", "PCT", "MGML", "OD"}  # PS3.3 C.11.1.1.2: effective atomic number, densities, ...
_LARGEST_SLOPE, _LARGEST_INTERCEPT = 1000.0, 40000.0  # HU; scanners write 1 and -1024, or -8192 at the most
_ORTHOGONAL = 0.01  # largest cosine between rows and columns that is rounding


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a series: where it lies (mm, LPS) and how its stored values become HU."""

    path: Path
    frame: int
    uid: str  # SOPInstanceUID
    number: int | None  # InstanceNumber
    position: np.ndarray  # centre of the first pixel
    directions: np.ndarray  # (2, 3): along a row (columns rise), along a column (rows rise)
    pixel_mm: tuple[float, float]  # between columns, between rows
    size: tuple[int, int]  # columns, rows
    rescale: tuple[float, float] | None  # slope and intercept; None where the file has none
    gantry_degrees: float  # that the header names
    photometric: str
    syntax: str  # UID of the transfer syntax
    keys: dict[str, str] = field(default_factory=dict)  # values of `KEYS` that the file has

    @property
    def normal(self) -> np.ndarray:
        return np.cross(*self.directions)


def planes_of(header: Any, path: Path, syntax: str) -> list[Plane]:
    """The planes of one file: one, or one per frame of an Enhanced CT."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    num_frames = int(header.get("NumberOfFrames") or 1)
    if frames is None and num_frames > 1:
        raise bad_volume(path, f"{num_frames} frames without their positions", "slices or Enhanced CT")
    if frames is None:
        return [_plane(header, path, syntax, 0, [])]
    if len(frames) != num_frames:
        raise bad_volume(path, f"{num_frames} frames with {len(frames)} positions", "a position for each frame")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [_plane(header, path, syntax, k, [frames[k], *shared]) for k in range(num_frames)]


def _plane(header: Any, path: Path, syntax: str, frame: int, groups: list[Any]) -> Plane:
    items = [g[name].value[0] for g in groups for name in _GROUPS if name in g and len(g[name].value)]
    items.append(header)
    between_rows, between_columns = _numbers(items, "PixelSpacing", 2, path)
    return Plane(
        path=path,
        frame=frame,
        uid=str(header.get("SOPInstanceUID") or ""),
        number=_whole(header.get("InstanceNumber")),
        position=np.array(_numbers(items, "ImagePositionPatient", 3, path)),
        directions=_directions(items, path),
        pixel_mm=(between_columns, between_rows),
        size=(int(header.Columns), int(header.Rows)),
        rescale=_rescale(items, path),
        gantry_degrees=_tilt_named(header),
        photometric=str(header.get("PhotometricInterpretation") or "MONOCHROME2"),
        syntax=syntax,
        keys=_keys(items),
    )


def _value(items: list[Any], name: str) -> Any:
    """The value of an attribute in the first item that has one."""
    tag = _TAG[name]
    found = (item[tag].value for item in items if tag in item)
    return next((value for value in found if value not in (None, "")), None)


def _numbers(items: list[Any], name: str, count: int, path: Path) -> list[float]:
    value = _value(items, name)
    if value is None or (not isinstance(value, str) and hasattr(value, "__len__") and not len(value)):
        raise bad_volume(path, f"no {name}", f"CT slices with {name}")
    try:
        numbers = [float(v) for v in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value])]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        wanted = "one finite number" if count == 1 else f"{count} finite numbers"
        raise bad_volume(path, f"the {name} {str(value)[:80]!r}", wanted)
    return numbers


def _directions(items: list[Any], path: Path) -> np.ndarray:
    directions = np.array(_numbers(items, "ImageOrientationPatient", 6, path)).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > _ORTHOGONAL or abs(directions[0] @ directions[1]) > _ORTHOGONAL:
        raise bad_volume(
            path, f"rows and columns that are not at right angles {cosines(directions)}", "unit vectors at right angles"
        )
    return directions


def _rescale(items: list[Any], path: Path) -> tuple[float, float] | None:
    kind = str(_value(items, "RescaleType") or "HU").upper()
    if kind in _NO_HU:
        raise bad_volume(path, f"values of the type {kind} (RescaleType)", "HU")
    if _value(items, "ModalityLUTSequence") is not None:
        raise bad_volume(path, "a table of values (ModalityLUTSequence)", "RescaleSlope and RescaleIntercept")
    present = [name for name in ("RescaleSlope", "RescaleIntercept") if _value(items, name) is not None]
    if not present:
        return None
    if len(present) == 1:
        raise bad_volume(path, f"{present[0]} alone", "both RescaleSlope and RescaleIntercept")
    (slope,), (intercept,) = (_numbers(items, name, 1, path) for name in present)
    if not 0 < slope <= _LARGEST_SLOPE:
        raise bad_volume(path, f"the RescaleSlope {slope:g}", f"a slope above 0, up to {_LARGEST_SLOPE:g}")
    if abs(intercept) > _LARGEST_INTERCEPT:
        raise bad_volume(path, f"the RescaleIntercept {intercept:g}", f"one within {_LARGEST_INTERCEPT:g} HU of 0")
    return slope, intercept


def _keys(items: list[Any]) -> dict[str, str]:
    found = {}
    for key, names in KEYS.items():
        value = next((v for v in (_value(items, name) for name in names) if v is not None), None)
        if value is not None:
            found[key] = written(value)
    return found


def written(value: Any) -> str:
    """A value as a user types it: `1.5`, `B30f`, `ORIGINAL/PRIMARY/AXIAL`."""
    if not isinstance(value, str) and hasattr(value, "__len__"):
        return "/".join(written(v) for v in value)
    try:
        return f"{float(value):.10g}" if not isinstance(value, str) else value.strip()
    except (TypeError, ValueError):
        return str(value).strip()


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _tilt_named(header: Any) -> float:
    try:
        return float(header.get("GantryDetectorTilt") or 0)
    except (TypeError, ValueError):
        return 0.0


def cosines(directions: np.ndarray) -> str:
    """The six direction cosines of a plane."""
    return "(" + ", ".join(f"{c:.3g}" for c in directions.ravel()) + ")"
