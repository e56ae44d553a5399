"""One CT series of a DICOM folder as a `Volume`, or an error that says what the folder holds.

Geometry by DICOM PS3.3 C.7.6.2 (Image Plane) and, for Enhanced CT, C.7.6.16.2 (functional groups); positions are LPS.
"""

import logging
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from maisi.errors import InvalidGridError, InvalidVolumeError
from maisi.space.checks import bad_volume, check_intensities, check_spacing
from maisi.space.grid import TOLERANCE_VOXELS, Grid
from maisi.space.orientation import turn_to_ras
from maisi.space.volume import OUTSIDE, Volume

logger = logging.getLogger(__name__)

_SAME_DIRECTION = 1e-3  # largest difference of direction cosines that is rounding
_SAME_PLACE_MM = 0.01
_BROKEN = (  # what pydicom lets through on damaged bytes
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(BytesLengthException, InvalidDicomError, struct.error),
)
_HEADER = ["SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesDescription"]
_CT_CLASSES = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
_LISTED = 8  # how many examples an error shows


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a series: where it lies (mm, LPS) and how its stored values become HU."""

    path: Path
    frame: int
    position: np.ndarray  # centre of the first pixel
    directions: np.ndarray  # (2, 3): along a row (columns rise), along a column (rows rise)
    pixel_mm: tuple[float, float]  # between columns, between rows
    size: tuple[int, int]  # columns, rows
    slope: float
    intercept: float


def read_series(folder: str | Path, series: str | None = None) -> Volume:
    """The CT series of a folder (searched with its subfolders) as HU, turned to RAS.

    Slices are sorted by their position along the normal, each with its own rescale slope and intercept; pixels marked
    as padding become -1024 HU. What is not a CT slice (structure set, plan, PET, localizer, dose sheet) beside the one
    CT series is passed over. An oblique stack is interpolated, see `turn_to_ras`.

    Raises `InvalidVolumeError`, with what was found, for no CT, several CT series without `series` (a
    SeriesInstanceUID), missing or duplicate slices, gantry tilt, uneven spacing, and mixed sizes or orientations.
    """
    folder = Path(folder)
    paths = _chosen(_ct_series(folder), folder, series)
    slices = [plane for path in paths for plane in _slices(path)]
    _check_alike(slices, folder)
    normal = np.cross(*slices[0].directions)
    slices.sort(key=lambda plane: float(plane.position @ normal))
    grid = _stacked_grid(slices, normal, folder)
    check_spacing(grid, folder, bad_volume)
    array = _hounsfield(slices)
    check_intensities(array, folder, "ct")
    return Volume(*turn_to_ras(array, grid, OUTSIDE["ct"], nearest=False))


def _ct_series(folder: Path) -> dict[str, list[Path]]:
    """Paths of the CT images per SeriesInstanceUID."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    if not files:
        raise bad_volume(folder, "an empty folder", "a folder of one DICOM CT series")
    found: dict[str, list[Path]] = defaultdict(list)
    other: dict[str, int] = defaultdict(int)
    for path in files:
        with _broken_refused(path):
            kind, uid = _kind_and_series(path)
        if kind == "CT":
            found[uid].append(path)
        else:
            other[kind] += 1
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(other.items()))
    if not found:
        raise bad_volume(folder, f"no CT image among {len(files)} files ({summary})", "a folder of one DICOM CT series")
    if summary:
        logger.info("%s: passed over what is not CT: %s", folder, summary)
    return found


@contextmanager
def _broken_refused(path: Path) -> Iterator[None]:
    """Turns what pydicom raises while it decodes a damaged file into an `InvalidVolumeError`."""
    try:
        yield
    except InvalidVolumeError:
        raise
    except _BROKEN as error:
        found = f"a DICOM file that cannot be decoded ({' '.join(str(error).split())[:200]})"
        raise bad_volume(
            path, found, "whole CT files with geometry, rescale and pixels, in a coding pydicom knows"
        ) from error


def _kind_and_series(path: Path) -> tuple[str, str]:
    """What a file is ("CT" for a CT slice), and its SeriesInstanceUID."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
    except InvalidDicomError:
        return "not DICOM", ""
    modality = str(header.get("Modality") or "without modality")
    sop_class = str(header.get("SOPClassUID", "unknown class"))
    if modality == "CT" and sop_class not in _CT_CLASSES:
        modality = f"CT as {UID(sop_class).name}"
    elif modality == "CT" and "LOCALIZER" in (header.get("ImageType") or []):
        modality = "CT localizer"
    return modality, str(header.get("SeriesInstanceUID", "without UID"))


def _chosen(found: dict[str, list[Path]], folder: Path, series: str | None) -> list[Path]:
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    if series in found:
        return found[series]
    listing = "; ".join(f"{uid} ({_described(paths)})" for uid, paths in sorted(found.items()))
    if series is None:
        raise bad_volume(folder, f"{len(found)} CT series: {listing}", "one series, or --series with the UID of one")
    raise bad_volume(folder, f"no CT series {series}", f"one of: {listing}")


def _described(paths: list[Path]) -> str:
    with _broken_refused(paths[0]):
        header = pydicom.dcmread(paths[0], stop_before_pixels=True, specific_tags=_HEADER)
        description = str(header.get("SeriesDescription") or "no description").strip()
    return f"{description}, {len(paths)} files"


def _slices(path: Path) -> list[Slice]:
    """The planes of one file: one, or one per frame of an Enhanced CT."""
    with _broken_refused(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.get("SamplesPerPixel", 1) != 1:
            raise bad_volume(path, f"{header.SamplesPerPixel} samples a pixel (colour)", "one value a pixel")
        frames = header.get("PerFrameFunctionalGroupsSequence")
        if frames is None and int(header.get("NumberOfFrames") or 1) > 1:
            raise bad_volume(path, f"{header.NumberOfFrames} frames without their positions", "slices or Enhanced CT")
        if frames is None:
            return [_slice(header, path, 0, [])]
        return [_slice(header, path, frame, _frame_groups(header, frame)) for frame in range(len(frames))]


def _frame_groups(header: Any, frame: int) -> list[Any]:
    """Functional groups of a frame, its own before the shared ones."""
    shared = header.get("SharedFunctionalGroupsSequence")
    return [header.PerFrameFunctionalGroupsSequence[frame], *(shared or [])]


def _slice(header: Any, path: Path, frame: int, groups: list[Any]) -> Slice:
    plane = _group(header, groups, "PlanePositionSequence")
    orientation = _group(header, groups, "PlaneOrientationSequence")
    measures = _group(header, groups, "PixelMeasuresSequence")
    values = _group(header, groups, "PixelValueTransformationSequence")
    between_rows, between_columns = (float(v) for v in measures.PixelSpacing)
    return Slice(
        path=path,
        frame=frame,
        position=np.array(plane.ImagePositionPatient, dtype=np.float64).reshape(3),
        directions=np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3),
        pixel_mm=(between_columns, between_rows),
        size=(int(header.Columns), int(header.Rows)),
        slope=float(values.RescaleSlope),
        intercept=float(values.RescaleIntercept),
    )


def _group(header: Any, groups: list[Any], name: str) -> Any:
    """The item that holds the attributes of one functional group; the header itself in a classic file."""
    return next((g[name].value[0] for g in groups if name in g), header)


def _check_alike(slices: list[Slice], folder: Path) -> None:
    """Nothing, or the refusal of a stack whose planes differ in more than their position."""
    first = slices[0]
    sizes = sorted({plane.size for plane in slices})
    if len(sizes) > 1:
        raise bad_volume(folder, f"slices of mixed sizes {_listed([f'{x}x{y}' for x, y in sizes])}", "one size")
    spacings = sorted({plane.pixel_mm for plane in slices})
    if not np.allclose(spacings, spacings[0], rtol=1e-3):
        found = _listed([f"{x:g}x{y:g} mm" for x, y in spacings])
        raise bad_volume(folder, f"slices of mixed pixel spacings {found}", "one pixel spacing")
    turned = [p for p in slices if np.abs(p.directions - first.directions).max() > _SAME_DIRECTION]
    if turned:
        found = _listed([_cosines(first), *sorted({_cosines(p) for p in turned})])
        raise bad_volume(
            folder, f"slices of mixed orientations {found} (is a localizer among them?)", "one orientation"
        )
    if np.abs(first.directions @ first.directions.T - np.eye(2)).max() > 10 * _SAME_DIRECTION:
        raise bad_volume(folder, f"rows and columns that are not at right angles {_cosines(first)}", "unit, orthogonal")
    if len(slices) == 1:
        raise bad_volume(folder, "a single slice (2-D)", "a CT series of 2 or more slices")


def _stacked_grid(slices: list[Slice], normal: np.ndarray, folder: Path) -> Grid:
    """The grid of the sorted slices `[column row slice]`, in RAS."""
    first, num = slices[0], len(slices)
    positions = np.array([plane.position for plane in slices])
    along = (positions - positions[0]) @ normal
    step = _even_step(along, folder)
    sideways = positions - positions[0] - along[:, None] * normal
    if np.linalg.norm(sideways, axis=1).max() > TOLERANCE_VOXELS * min(first.pixel_mm):
        degrees = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), along[-1]))
        found = f"a gantry tilt: slices shift sideways by up to {np.linalg.norm(sideways, axis=1).max():.2f} mm"
        raise bad_volume(folder, f"{found} ({degrees:.1f} degrees overall)", "slices stacked along their normal")
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.pixel_mm[0]
    affine[:3, 1] = first.directions[1] * first.pixel_mm[1]
    affine[:3, 2] = normal * step
    affine[:3, 3] = first.position
    try:
        return Grid((*first.size, num), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # LPS to RAS
    except InvalidGridError as error:
        raise bad_volume(
            folder, f"an impossible geometry ({error})", "finite positions, positive pixel spacing"
        ) from error


def _even_step(along: np.ndarray, folder: Path) -> float:
    """The distance of neighbouring slices, mm, from their sorted positions along the normal."""
    gaps = np.diff(along)
    twice = np.flatnonzero(gaps < _SAME_PLACE_MM)
    if len(twice):
        places = _listed([f"{along[i]:.2f} mm" for i in twice])
        raise bad_volume(
            folder, f"{len(twice)} duplicate slice positions, at {places} from the first slice", "one slice a position"
        )
    usual = float(np.median(gaps))
    steps = np.rint(gaps / usual)
    wide = np.flatnonzero(steps > 1)
    if len(wide) and np.abs(gaps / usual - steps).max() <= TOLERANCE_VOXELS:
        places = _listed([f"{along[i]:.2f} and {along[i + 1]:.2f} mm" for i in wide])
        found = f"{int((steps - 1).sum())} missing slices (spacing {usual:g} mm), between {places} from the first slice"
        raise bad_volume(folder, found, "a series without gaps")
    step = float(along[-1] / (len(along) - 1))
    if np.abs(along - step * np.arange(len(along))).max() > TOLERANCE_VOXELS * step:
        found = f"uneven slice spacing, from {gaps.min():.3f} to {gaps.max():.3f} mm (usually {usual:.3f} mm)"
        raise bad_volume(folder, found, "slices at equal distances, to a tenth of the spacing")
    return step


def _hounsfield(slices: list[Slice]) -> np.ndarray:
    """The voxels `[column row slice]`, HU, float32."""
    array = np.empty((*slices[0].size, len(slices)), dtype=np.float32)
    by_path: dict[Path, list[int]] = defaultdict(list)
    for k, plane in enumerate(slices):
        by_path[plane.path].append(k)
    for path, indices in by_path.items():
        with _broken_refused(path):
            stored, padding = _stored(path)
            for k in indices:
                plane, pixels = slices[k], stored[slices[k].frame]
                values = pixels * np.float32(plane.slope) + np.float32(plane.intercept)
                array[:, :, k] = np.where(_is_padding(pixels, padding), np.float32(OUTSIDE["ct"]), values).T
    return array


def _stored(path: Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Stored values (frames, rows, columns), and the range of values that means padding."""
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array
    low = dataset.get("PixelPaddingValue")
    high = dataset.get("PixelPaddingRangeLimit", low)
    padding = None if low is None else (min(int(low), int(high)), max(int(low), int(high)))
    return stored[None] if stored.ndim == 2 else stored, padding


def _is_padding(pixels: np.ndarray, padding: tuple[int, int] | None) -> np.ndarray:
    if padding is None:
        return np.zeros(pixels.shape, dtype=bool)
    return (pixels >= padding[0]) & (pixels <= padding[1])


def _cosines(plane: Slice) -> str:
    return "(" + ", ".join(f"{c:.3g}" for c in plane.directions.ravel()) + ")"


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:_LISTED])
    return shown if len(items) <= _LISTED else f"{shown} and {len(items) - _LISTED} more"
