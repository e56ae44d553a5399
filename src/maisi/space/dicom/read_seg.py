"""Segments of a DICOM segmentation: one mask a segment (BINARY), or one map of their numbers (LABELMAP)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels import iter_pixels

from maisi.space.checks import bad_labels, check_spacing
from maisi.space.dicom.opening import syntax_of
from maisi.space.dicom.plane import Plane, planes_of
from maisi.space.dicom.reference import Drawn, series_beside
from maisi.space.dicom.stacks import SAME_PLACE_MM
from maisi.space.grid import TOLERANCE_VOXELS, Grid
from maisi.space.reading import Finding
from maisi.space.segments import Code, Coding
from maisi.space.stored_labels import StoredLabels, turned
from maisi.space.structures import Structure, painted

_KINDS = ("BINARY", "LABELMAP")


def read_segments(dataset: Any, path: Path) -> StoredLabels:
    """The segments of a SEG by their labels, on the grid of its CT series where that lies beside, else on its own.

    Its own grid ends with the outermost slices that show a segment. Raises `InvalidLabelsError` for FRACTIONAL
    segments, frames that are no stack, and frames in another frame of reference than the series.
    """
    kind = str(dataset.get("SegmentationType"))
    if kind not in _KINDS:
        raise bad_labels(path, f"a segmentation of the type {kind}", " or ".join(_KINDS))
    planes = planes_of(dataset, path, str(syntax_of(dataset)))
    _check_alike(planes, path)
    drawn = _series_of(dataset, path)
    grid, findings = _own_grid(planes, dataset, path) if drawn is None else (_checked(drawn, planes, path), ())
    places = _places(planes, grid, path)
    names = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in dataset.SegmentSequence}
    if kind == "LABELMAP":
        stored = _of_map(dataset, places, grid, names)
    else:
        structures = _structures(dataset, places, names, path)
        stored = painted(structures, grid, f"{len(names)} BINARY segments", "one structure a segment")
    return replace(stored, findings=(*findings, *stored.findings), codings=_codings(dataset))


def _codings(dataset: Any) -> dict[str, Coding]:
    """The codes of segments by their labels; none of a label that several segments share."""
    labels = [str(item.SegmentLabel).strip() for item in dataset.SegmentSequence]
    found = zip(labels, map(_coding, dataset.SegmentSequence), strict=True)
    return {label: coding for label, coding in found if coding is not None and labels.count(label) == 1}


def _coding(segment: Any) -> Coding | None:
    type, laterality = _coded(segment, "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence")
    region, its_laterality = _coded(segment, "AnatomicRegionSequence", "AnatomicRegionModifierSequence")
    if type is None:
        return None
    return Coding(type=type, laterality=laterality, region=region, region_laterality=its_laterality)


def _coded(item: Any, name: str, modifier: str) -> tuple[Code | None, Code | None]:
    """The first code of a sequence, and that of its modifier."""
    first = next(iter(item.get(name) or []), None)
    if first is None or "CodeValue" not in first:
        return None, None
    code = Code(
        value=str(first.CodeValue),
        meaning=str(first.get("CodeMeaning", "")),
        scheme=str(first.get("CodingSchemeDesignator", "")),
    )
    return code, _coded(first, modifier, "")[0]


def _series_of(dataset: Any, path: Path) -> Drawn | None:
    """The CT series that a SEG names, where it lies beside."""
    named = dataset.get("ReferencedSeriesSequence") or []
    series = sorted({str(item.SeriesInstanceUID) for item in named})
    if len(series) > 1:
        raise bad_labels(path, f"segments of {len(series)} series: {', '.join(series)}", "segments of one CT series")
    drawn = series_beside(path, series[0]) if series else None
    frame = str(dataset.get("FrameOfReferenceUID") or "")
    if drawn is not None and drawn.frame != frame:
        found = f"segments in another frame of reference ({frame}) than their series ({drawn.frame})"
        raise bad_labels(path, found, "segments in the frame of reference of the CT")
    return drawn


def _check_alike(planes: Sequence[Plane], path: Path) -> None:
    first = planes[0]
    if any(np.abs(plane.directions - first.directions).max() > 1e-3 for plane in planes):
        raise bad_labels(path, "frames of several orientations", "frames of one orientation")


def _checked(drawn: Drawn, planes: Sequence[Plane], path: Path) -> Grid:
    """The grid of the series, or the refusal of frames of another size, spacing or orientation."""
    mine, its = planes[0], drawn.planes[0]
    is_turned = np.abs(mine.directions - its.directions).max() > 1e-3
    if mine.size != its.size or not np.allclose(mine.pixel_mm, its.pixel_mm, rtol=1e-3) or is_turned:
        found = f"frames of {mine.size[0]}x{mine.size[1]} pixels where its series has {its.size[0]}x{its.size[1]}"
        raise bad_labels(path, f"{found}, or other spacing or orientation", "frames on the slices of the series")
    return drawn.grid


def _own_grid(planes: Sequence[Plane], dataset: Any, path: Path) -> tuple[Grid, tuple[Finding, ...]]:
    """The grid from the lowest to the highest frame, with what that leaves open."""
    first = planes[0]
    normal = first.normal / np.linalg.norm(first.normal)
    along = np.array([float((plane.position - first.position) @ normal) for plane in planes])
    levels = np.unique(np.round(along / SAME_PLACE_MM)) * SAME_PLACE_MM
    if len(levels) < 2:
        raise bad_labels(path, "segments on a single slice", "two slices or more, or the CT series beside the file")
    step = _step(dataset) or float(np.diff(levels).min())
    count = round(float(levels[-1] - levels[0]) / step) + 1
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.pixel_mm[0]
    affine[:3, 1] = first.directions[1] * first.pixel_mm[1]
    affine[:3, 2] = normal * step
    affine[:3, 3] = planes[int(np.argmin(along))].position
    grid = Grid((*first.size, count), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    check_spacing(grid, path, bad_labels)
    found = f"segments without their CT series beside them, on {count} slices"
    return grid, (Finding(topic="place", found=found, decided="taken to end with the outermost of these slices"),)


def _step(dataset: Any) -> float | None:
    """The distance of slices that the header tells, mm."""
    for group in dataset.get("SharedFunctionalGroupsSequence") or []:
        for measures in group.get("PixelMeasuresSequence") or []:
            if measures.get("SpacingBetweenSlices"):
                return float(measures.SpacingBetweenSlices)
    return None


def _places(planes: Sequence[Plane], grid: Grid, path: Path) -> list[int]:
    """The slice of each frame."""
    index = grid.index(np.array([plane.position for plane in planes]) * (-1, -1, 1))
    whole = np.rint(index[:, 2]).astype(int)
    off = np.abs(index - np.column_stack([np.zeros((len(planes), 2)), whole])).max()
    if off > TOLERANCE_VOXELS or whole.min() < 0 or whole.max() >= grid.shape[2]:
        raise bad_labels(path, f"frames {off:.2g} voxels beside the slices of {grid}", "frames on the slices")
    places: list[int] = whole.tolist()
    return places


def _of_map(dataset: Any, places: Sequence[int], grid: Grid, names: dict[int, str]) -> StoredLabels:
    ids = np.zeros(grid.shape, np.uint8 if int(dataset.BitsAllocated) == 8 else np.uint16)
    for k, frame in zip(places, _frames(dataset), strict=True):
        ids[:, :, k] = frame.T
    finding = Finding(topic="format", found=f"a LABELMAP of {len(names)} segments", decided="taken by their labels")
    return StoredLabels(turned(ids, grid), {n: name for n, name in names.items() if n}, (finding,))


def _frames(dataset: Any) -> Iterator[np.ndarray]:
    """The frames `[row column]` in order; of one bit a pixel they begin anywhere in a byte (PS3.5 8.1.1)."""
    if int(dataset.BitsAllocated) != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(dataset, raw=True)
        return
    rows, columns, packed = int(dataset.Rows), int(dataset.Columns), np.frombuffer(dataset.PixelData, np.uint8)
    size = rows * columns
    for start in range(0, size * int(dataset.NumberOfFrames), size):
        few = packed[start // 8 : (start + size + 7) // 8]
        bits = np.unpackbits(few, bitorder="little")[start % 8 : start % 8 + size]
        yield bits.reshape(rows, columns)


@dataclass(frozen=True, eq=False)
class _Patch:
    """What a frame shows: the box around it and what is in it."""

    corner: tuple[int, int, int]
    mask: np.ndarray  # [column row]


def _structures(dataset: Any, places: Sequence[int], names: dict[int, str], path: Path) -> list[Structure]:
    """The masks of all segments, each in the box around it."""
    patches: dict[int, list[_Patch]] = defaultdict(list)
    for number, k, frame in zip(_numbers(dataset, path), places, _frames(dataset), strict=True):
        if number not in names:
            raise bad_labels(path, f"a frame of segment {number}, which has no description", "a label a segment")
        if frame.any():
            mask = frame.T.astype(bool)
            i, j = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            patches[number].append(_Patch((i[0], j[0], k), mask[i[0] : i[-1] + 1, j[0] : j[-1] + 1].copy()))
    return [_assembled(names[number], patches[number]) for number in sorted(patches)]


def _numbers(dataset: Any, path: Path) -> list[int]:
    """The segment of each frame."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    found = []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        item = next((g for g in (frame, *shared) if "SegmentIdentificationSequence" in g), None)
        if item is None:
            raise bad_labels(path, "a frame that names no segment", "a segment number for each frame")
        found.append(int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber))
    return found


def _assembled(name: str, patches: Sequence[_Patch]) -> Structure:
    corners = np.array([patch.corner for patch in patches])
    ends = np.array([[*np.add(p.corner[:2], p.mask.shape), p.corner[2] + 1] for p in patches])
    low, high = corners.min(axis=0), ends.max(axis=0)
    mask = np.zeros(high - low, bool)
    for patch in patches:
        i, j, k = (a - b for a, b in zip(patch.corner, low, strict=True))
        mask[i : i + patch.mask.shape[0], j : j + patch.mask.shape[1], k] |= patch.mask
    return Structure(name, tuple(low.tolist()), mask, int(np.count_nonzero(mask)))
