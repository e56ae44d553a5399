"""Where a stack of alike planes lies: their distance, gaps among them, a gantry tilt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi.errors import InvalidGridError
from maisi.space.checks import bad_volume
from maisi.space.dicom.alike import names
from maisi.space.dicom.plane import Plane
from maisi.space.dicom.scan import listed
from maisi.space.dicom.stacks import SAME_PLACE_MM
from maisi.space.grid import TOLERANCE_VOXELS, Grid
from maisi.space.reading import Finding
from maisi.space.tilt import Tilt, tilt_of

_STEEPEST = 45.0  # degrees; gantries tilt by 30 at most
_TOLD_DEGREES = 1.0  # a tilt that a header names and the positions do not show
_THIN = 0.6  # slices so much thinner than their distance may stand where every second is missing


def placed(planes: Sequence[Plane], folder: Path) -> tuple[list[Plane], Grid, list[Finding]]:
    """The planes in order along their normal, their grid `[column row slice]` in RAS, and what was found of it.

    The grid of a tilted stack is sheared. Raises `InvalidVolumeError` for a single plane, doubles, gaps, uneven
    distances and planes that shift sideways unevenly or too far.
    """
    if len(planes) == 1:
        found = f"a single slice (2-D), {names(planes, folder)[0]}"
        raise bad_volume(folder, found, "a CT series of 2 or more slices, given by its folder")
    normal = planes[0].normal / np.linalg.norm(planes[0].normal)
    planes = sorted(planes, key=lambda plane: float(plane.position @ normal))
    positions = np.array([plane.position for plane in planes])
    along = (positions - positions[0]) @ normal
    step = normal * _even_step(along, planes, folder)
    drift = _drift(positions - positions[0] - along[:, None] * normal, step, planes, folder)
    grid = _grid(planes, step + drift, folder)
    return planes, grid, [*_tilt_findings(tilt_of(grid), planes), *_thinned(planes, float(np.linalg.norm(step)))]


def _grid(planes: Sequence[Plane], step: np.ndarray, folder: Path) -> Grid:
    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.pixel_mm[0]
    affine[:3, 1] = first.directions[1] * first.pixel_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    try:
        return Grid((*first.size, len(planes)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # LPS to RAS
    except InvalidGridError as error:
        raise bad_volume(
            folder, f"an impossible geometry ({error})", "finite positions, positive pixel spacing"
        ) from error


def _even_step(along: np.ndarray, planes: Sequence[Plane], folder: Path) -> float:
    """The distance of neighbouring slices, mm, from their sorted positions along the normal."""
    gaps = np.diff(along)
    twice = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(twice):
        files = listed([_between(planes, int(i), folder) for i in twice])
        raise bad_volume(folder, f"{len(twice)} duplicate slice positions: {files}", "one slice a position")
    usual = float(np.median(gaps))
    step = float(along[-1] / (len(along) - 1))
    if np.abs(along - step * np.arange(len(along))).max() <= TOLERANCE_VOXELS * step:
        return step
    steps = np.rint(gaps / usual)
    wide = np.flatnonzero(steps > 1)
    if len(wide) and np.abs(gaps / usual - steps).max() <= TOLERANCE_VOXELS:
        count = int((steps - 1).sum())
        missing = "1 missing slice" if count == 1 else f"{count} missing slices"
        where = listed([_between(planes, int(i), folder) for i in wide])
        raise bad_volume(folder, f"{missing} (spacing {usual:g} mm): {where}", "a series without gaps")
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    found = f"uneven slice spacing, from {gaps.min():.3f} to {gaps.max():.3f} mm (usually {usual:.3f} mm)"
    where = f"narrowest {_between(planes, narrowest, folder)}, widest {_between(planes, widest, folder)}"
    raise bad_volume(folder, f"{found}: {where}", "slices at equal distances, to a tenth of the spacing")


def _between(planes: Sequence[Plane], index: int, folder: Path) -> str:
    """Two neighbours by their file names and positions."""
    pair = planes[index : index + 2]
    axis = int(np.abs(pair[0].normal).argmax())
    files = [
        name if plane.frame == 0 else f"{name} frame {plane.frame + 1}"
        for plane in pair
        for name in names([plane], folder)
    ]
    places = [f"{'xyz'[axis]} = {plane.position[axis]:g} mm" for plane in pair]
    return f"between {files[0]} ({places[0]}) and {files[1]} ({places[1]})"


def _drift(sideways: np.ndarray, step: np.ndarray, planes: Sequence[Plane], folder: Path) -> np.ndarray:
    """By how much each plane lies sideways of the one before, mm; the refusal where that is not even or too much."""
    tolerance = TOLERANCE_VOXELS * min(planes[0].pixel_mm)
    shifts = np.linalg.norm(sideways, axis=1)
    if shifts.max() <= tolerance:
        return np.zeros(3)
    drift = sideways[-1] / (len(sideways) - 1)
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(drift), np.linalg.norm(step))))
    uneven = np.linalg.norm(sideways - drift * np.arange(len(sideways))[:, None], axis=1)
    found = f"slices that shift sideways by up to {shifts.max():.2f} mm"
    if uneven.max() > tolerance:
        worst = names([planes[int(uneven.argmax())]], folder)[0]
        what = f"{found}, not evenly (by {uneven.max():.2f} mm at {worst})"
        raise bad_volume(folder, what, "slices stacked along one straight line")
    if degrees > _STEEPEST:
        raise bad_volume(folder, f"{found} (a tilt of {degrees:.1f} degrees)", f"a tilt of up to {_STEEPEST:g} degrees")
    return drift


def _tilt_findings(tilt: Tilt | None, planes: Sequence[Plane]) -> list[Finding]:
    named = max((abs(plane.gantry_degrees) for plane in planes), default=0.0)
    if tilt is not None:
        found = f"a gantry tilt of {tilt.degrees:.1f} degrees"
        decided = f"straightened: planes {tilt.distance_mm:.4g} mm apart, interpolated; -1024 HU around them"
        return [Finding(topic="place", found=found, decided=decided, is_warning=True)]
    if named > _TOLD_DEGREES:
        found = f"a gantry tilt of {named:.1f} degrees in the header, of which the positions show nothing"
        decided = "taken by the positions, as images whose tilt was corrected"
        return [Finding(topic="place", found=found, decided=decided, is_warning=True)]
    return []


def _thinned(planes: Sequence[Plane], step: float) -> list[Finding]:
    """A warning of slices that number and thickness tell to be every second or third of a series."""
    numbers = [plane.number for plane in planes]
    known = [n for n in numbers if n is not None]
    strides = set(np.abs(np.diff(known)).tolist()) if len(known) == len(planes) else set()
    try:
        thickness = float(planes[0].keys.get("thickness", "nan"))
    except ValueError:
        return []
    if len(planes) < 3 or len(strides) != 1 or next(iter(strides)) < 2 or not 0 < thickness < _THIN * step:
        return []
    stride = int(next(iter(strides)))
    found = f"slices {thickness:g} mm thick that lie {step:g} mm apart, of which only each {stride}th number is there"
    return [Finding(topic="slices", found=found, decided=f"taken as {step:g} mm apart", is_warning=True)]
