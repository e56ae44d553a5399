"""Contours of an RT structure set, laid onto the slices of the CT series that they name."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maisi.space.checks import bad_labels
from maisi.space.contours import filled
from maisi.space.dicom.reference import Drawn, series_beside
from maisi.space.grid import TOLERANCE_VOXELS, Grid
from maisi.space.reading import Finding
from maisi.space.stored_labels import StoredLabels
from maisi.space.structures import Structure, boxed, painted

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_SHOWN = 6


def read_contours(dataset: Any, path: Path) -> StoredLabels:
    """The regions of interest that have closed contours, one structure each, on the grid of the series.

    Contours of a slice take from each other where they overlap (a hole is a contour in a contour). Raises
    `InvalidLabelsError` for a series that is not there, another frame of reference, and contours between slices.
    """
    series = _series_named(dataset, path)
    drawn = series_beside(path, series)
    if drawn is None:
        found = f"contours on the CT series {series}, which is not in {path.parent} nor below"
        raise bad_labels(path, found, "the file in a folder with its CT series")
    names = {int(roi.ROINumber): str(roi.get("ROIName") or "").strip() for roi in dataset.StructureSetROISequence}
    frames = {int(roi.ROINumber): str(roi.ReferencedFrameOfReferenceUID) for roi in dataset.StructureSetROISequence}
    structures: list[Structure] = []
    passed: list[str] = []
    contours = dataset.get("ROIContourSequence") or []
    for item in contours:
        number = int(item.ReferencedROINumber)
        name = names.get(number, "")
        if not name:
            raise bad_labels(path, f"contours of region {number}, which has no name", "a name for each region")
        closed = [c for c in item.get("ContourSequence") or [] if str(c.ContourGeometricType) in _CLOSED]
        if not closed:
            passed.append(name)
            continue
        if frames[number] != drawn.frame:
            found = f"contours of {name} in another frame of reference ({frames[number]}) than their series"
            raise bad_labels(path, f"{found} ({drawn.frame})", "contours in the frame of reference of the CT")
        structures += boxed(name, _mask(closed, drawn, name, path))
    told = f"contours of {len(contours) - len(passed)} regions on {drawn.grid.shape[2]} slices"
    stored = painted(structures, drawn.grid, told, "voxels whose centres lie within")
    return StoredLabels(stored.labels, stored.names, (*stored.findings, *_passed_over(passed)))


def _series_named(dataset: Any, path: Path) -> str:
    series = {
        str(each.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for each in study.get("RTReferencedSeriesSequence") or []
    }
    if len(series) != 1:
        found = f"contours on {len(series)} series" + (f": {', '.join(sorted(series))}" if series else "")
        raise bad_labels(path, found, "contours on one CT series")
    return series.pop()


def _mask(contours: Iterable[Any], drawn: Drawn, name: str, path: Path) -> np.ndarray:
    """Where a region is, `[column row slice]`."""
    polygons: dict[int, list[np.ndarray]] = defaultdict(list)
    for contour in contours:
        k, polygon = _polygon(contour, drawn.grid, name, path)
        polygons[k].append(polygon)
    mask = np.zeros(drawn.grid.shape, bool)
    for k, of_slice in polygons.items():
        mask[:, :, k] = filled(of_slice, drawn.grid.shape[:2])
    return mask


def _polygon(contour: Any, grid: Grid, name: str, path: Path) -> tuple[int, np.ndarray]:
    """The slice of a contour, and its corners `(n, 2)` in columns and rows."""
    points = _numbers(contour)
    if points.size % 3 or points.size < 9 or not np.isfinite(points).all():
        raise bad_labels(
            path, f"a contour of {name} of {points.size} numbers", "three coordinates for each of its points"
        )
    index = grid.index(points.reshape(-1, 3) * (-1, -1, 1))
    k = round(float(index[:, 2].mean()))
    off = float(np.abs(index[:, 2] - k).max())
    if off > TOLERANCE_VOXELS or not 0 <= k < grid.shape[2]:
        z = float(points.reshape(-1, 3)[0, 2])
        where = "between slices" if 0 <= k < grid.shape[2] else "beyond the slices"
        raise bad_labels(
            path, f"a contour of {name} {where}, at z = {z:g} mm", "contours on the slices of their series"
        )
    return k, index[:, :2]


def _numbers(contour: Any) -> np.ndarray:
    """The coordinates of a contour; from its text, since number by number takes minutes."""
    value = contour.get_item("ContourData").value
    if isinstance(value, bytes):
        return np.array(value.decode("ascii").strip(" \0").split("\\"), np.float64)
    return np.array(value, np.float64)


def _passed_over(names: list[str]) -> tuple[Finding, ...]:
    if not names:
        return ()
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    found = f"{len(names)} regions without closed contours: {shown}"
    return (Finding(topic="format", found=found, decided="passed over", is_warning=True),)
