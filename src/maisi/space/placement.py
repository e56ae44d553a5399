"""Where a NIfTI file says that it lies: an sform, a qform and a pixdim, which do not always agree.

NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields): method 1 is pixdim alone, method 2 the qform,
method 3 the sform.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from maisi.errors import InvalidGridError
from maisi.shapes import in_words
from maisi.space.checks import Refusal, check_spacing
from maisi.space.grid import TOLERANCE_VOXELS, Grid
from maisi.space.reading import Finding
from maisi.space.tilt import tilt_of

Form: TypeAlias = Literal["sform", "qform"]

_UNITS = {0: ("unknown", 1.0), 1: ("metre", 1000.0), 2: ("millimetre", 1.0), 3: ("micrometre", 0.001)}
_CODES = {0: "unknown", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI", 5: "template"}
# Two places are one when they differ as headers are rounded: pixdim to three digits, cosines to three, the first voxel
# by a tenth of a voxel and the last by half of one.
_SAME_SPACING = 2e-3
_SAME_DIRECTION = 2e-3
_SAME_CORNER_VOXELS = 0.5
_FARTHEST_MM = 1e5  # no scanner's table is as long
_STEEPEST_TILT = 45.0  # degrees; gantries tilt by up to 30


@dataclass(frozen=True)
class _Place:
    """One of a file's two places: its code, and its affine in mm, or why it has none."""

    name: Form
    code: int
    grid: Grid | None
    fault: str = ""


def nifti_grid(image: Any, path: Path, refuse: Refusal, affine: Form | None = None) -> tuple[Grid, list[Finding]]:
    """The grid of the file's axes, in mm along RAS+, and what was not plain about it.

    `affine` chooses between sform and qform where they disagree; without it a disagreement is refused, with both.
    """
    findings: list[Finding] = []
    scale = _unit_mm(image, path, refuse, findings)
    header = _raw_header(image)
    places = {"sform": _sform(header, image, scale), "qform": _qform(header, image, scale)}
    if affine is not None:
        grid = _asked_for(places[affine], path, refuse, findings)
    else:
        grid = _settled(places["sform"], places["qform"], header, image, scale, path, refuse, findings)
    check_spacing(grid, path, refuse)
    if np.abs(grid.affine[:3, 3]).max() > _FARTHEST_MM:
        origin = ", ".join(f"{o:.4g}" for o in grid.origin)
        raise refuse(
            path, f"a first voxel at ({origin}) mm", f"a place within {_FARTHEST_MM:g} mm of the world's origin"
        )
    _check_axes(grid, path, refuse, findings)
    return grid, findings


def _raw_header(image: Any) -> Any:
    """The fields as they stand in the file: nibabel mends some of them as it opens an image."""
    file = image.file_map["image"].fileobj
    file.seek(0)
    size = int(image.header["sizeof_hdr"])
    return type(image.header)(file.read(size), endianness=image.header.endianness, check=False)


def _unit_mm(image: Any, path: Path, refuse: Refusal, findings: list[Finding]) -> float:
    unit = int(image.header["xyzt_units"]) & 7
    if unit not in _UNITS:
        raise refuse(path, f"the unit of length {unit}", f"one of the NIfTI codes {', '.join(map(str, _UNITS))}")
    name, scale = _UNITS[unit]
    if scale != 1:
        findings.append(_note(f"lengths in {name}s", "turned into millimetres"))
    return scale


def _sform(header: Any, image: Any, scale: float) -> _Place:
    matrix = np.eye(4)
    matrix[:3] = np.stack([header["srow_x"], header["srow_y"], header["srow_z"]])
    if not matrix[:3, :3].any():
        return _Place("sform", int(header["sform_code"]), None, "all zero")
    return _placed("sform", int(header["sform_code"]), matrix, image, scale)


def _qform(header: Any, image: Any, scale: float) -> _Place:
    """The quaternion's rotation times pixdim; pixdim[0] of -1 turns the third axis."""
    code = int(header["qform_code"])
    steps = np.array(header["pixdim"], np.float64)
    vector = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], np.float64)
    if not (np.isfinite(vector).all() and vector @ vector <= 1 + 1e-5):
        return _Place("qform", code, None, f"no unit quaternion ({', '.join(f'{v:g}' for v in vector)})")
    if not (np.isfinite(steps[1:4]).all() and (steps[1:4] > 0).all()):
        return _Place("qform", code, None, f"a pixdim of {in_words(steps[1:4], 4)}")
    steps[3] *= -1 if steps[0] < 0 else 1
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(vector) * steps[1:4]
    matrix[:3, 3] = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]
    return _placed("qform", code, matrix, image, scale)


def _rotation(vector: np.ndarray) -> np.ndarray:
    """The rotation of the unit quaternion (a, b, c, d) with a >= 0, of which a file holds (b, c, d)."""
    a = np.sqrt(max(0.0, 1 - vector @ vector))
    b, c, d = vector / max(1.0, float(np.sqrt(vector @ vector)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _placed(name: Form, code: int, matrix: np.ndarray, image: Any, scale: float) -> _Place:
    matrix[:3] *= scale
    try:
        return _Place(name, code, Grid(image.shape[:3], matrix))
    except InvalidGridError as error:
        return _Place(name, code, None, str(error))


def _asked_for(place: _Place, path: Path, refuse: Refusal, findings: list[Finding]) -> Grid:
    if place.grid is None:
        raise refuse(path, f"no {place.name} that places it: {place.fault}", f"--affine {_other(place.name)}")
    findings.append(_note(f"sform and qform; the {place.name} asked for", f"placed by the {place.name}: {place.grid}"))
    return place.grid


def _settled(
    sform: _Place,
    qform: _Place,
    header: Any,
    image: Any,
    scale: float,
    path: Path,
    refuse: Refusal,
    findings: list[Finding],
) -> Grid:
    """The place that the codes name, where it is one; refused where there are two or none."""
    named = [place for place in (sform, qform) if place.code > 0]
    if not named:
        return _by_method_1(header, image, scale, path, refuse, findings)
    whole = [place for place in named if place.grid is not None]
    if not whole:
        faults = "; ".join(f"the {place.name} is no place ({place.fault})" for place in named)
        raise refuse(path, faults, "an affine that is finite and invertible")
    place = whole[0]
    assert place.grid is not None
    if len(whole) == 2:
        _check_agreement(sform, qform, path, refuse)
    elif len(named) == 2:
        fault = next(each for each in named if each.grid is None)
        found = f"the {fault.name} has a code ({fault.code}) but is no place ({fault.fault})"
        findings.append(_warning(found, f"placed by the {place.name}: {place.grid}"))
    elif place.name == "sform":
        _check_pixdim(place.grid, header, scale, path, refuse, findings)
    return place.grid


def _by_method_1(header: Any, image: Any, scale: float, path: Path, refuse: Refusal, findings: list[Finding]) -> Grid:
    """x, y and z are the voxel indices times pixdim."""
    steps = np.array(header["pixdim"][1:4], np.float64) * scale
    try:
        grid = Grid.axis_aligned(image.shape[:3], steps.tolist(), (0.0, 0.0, 0.0))
    except InvalidGridError as error:
        raise refuse(
            path, f"neither sform nor qform, and a pixdim of {in_words(steps, 4)}", "a file with a place"
        ) from error
    found = "neither sform nor qform has a code: where left and right are is not said"
    findings.append(_warning(found, f"placed by NIfTI's method 1, axes to the right, front and top: {grid}"))
    return grid


def _check_agreement(sform: _Place, qform: _Place, path: Path, refuse: Refusal) -> None:
    """Nothing where both places are one to within rounding, else the refusal that tells both."""
    assert sform.grid is not None
    assert qform.grid is not None
    if _is_same(sform.grid, qform.grid) or _is_same(_without_shear(sform.grid), qform.grid):
        return
    found = "; ".join(
        f"{p.name} (code {p.code}, {_CODES.get(p.code, 'other')}): {_told(p.grid)}" for p in (sform, qform)
    )
    apart = np.linalg.norm(sform.grid.corners() - qform.grid.corners(), axis=1).max()
    raise refuse(
        path,
        f"sform and qform that disagree by up to {apart:.4g} mm: {found}",
        "--affine sform or --affine qform, to say which counts",
    )


def _is_same(one: Grid, other: Grid) -> bool:
    spacing, others = np.array(one.spacing), np.array(other.spacing)
    if np.abs(spacing / others - 1).max() > _SAME_SPACING:
        return False
    if np.abs(one.affine[:3, :3] / spacing - other.affine[:3, :3] / others).max() > _SAME_DIRECTION:
        return False
    apart = float(np.linalg.norm(np.array(one.origin) - np.array(other.origin)))
    return apart <= TOLERANCE_VOXELS * min(one.spacing) and one.is_close(other, _SAME_CORNER_VOXELS)


def _without_shear(grid: Grid) -> Grid:
    """The rotation nearest to a sheared grid: all that a qform can hold of it."""
    spacing = np.array(grid.spacing)
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / spacing)
    matrix = grid.affine.copy()
    matrix[:3, :3] = left @ right * spacing
    return Grid(grid.shape, matrix)


def _check_pixdim(grid: Grid, header: Any, scale: float, path: Path, refuse: Refusal, findings: list[Finding]) -> None:
    """Nothing where pixdim has the spacing of the sform, else the refusal that tells both."""
    steps = np.array(header["pixdim"][1:4], np.float64) * scale
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        findings.append(
            _warning(f"a pixdim of {in_words(steps, 4)}, which is no spacing", f"placed by the sform: {grid}")
        )
        return
    tilt = tilt_of(grid)
    spacings = [np.array(grid.spacing)]
    if tilt is not None:
        spacings.append(np.where(np.arange(3) == tilt.axis, tilt.distance_mm, grid.spacing))
    if min(np.abs(steps / spacing - 1).max() for spacing in spacings) > _SAME_SPACING:
        found = f"an sform with a spacing of {in_words(grid.spacing, 4)} mm, but a pixdim of {in_words(steps, 4)} mm"
        raise refuse(path, found, "--affine sform to take the sform, or a header in which both agree")


def _check_axes(grid: Grid, path: Path, refuse: Refusal, findings: list[Finding]) -> None:
    """Notes a tilt that will be straightened; refuses axes that lean as no gantry does."""
    tilt = tilt_of(grid)
    if tilt is None:
        return
    directions = grid.affine[:3, :3] / grid.spacing
    one, other = (axis for axis in range(3) if axis != tilt.axis)
    skew = abs(90 - float(np.degrees(np.arccos(np.clip(directions[:, one] @ directions[:, other], -1, 1)))))
    sideways = np.radians(skew) * grid.shape[one] * grid.spacing[one]
    if tilt.degrees > _STEEPEST_TILT or (skew > 0.1 and sideways > TOLERANCE_VOXELS * min(grid.spacing)):
        found = f"axes that are not at right angles: planes tilted by {tilt.degrees:.1f} degrees"
        found += f", and their own axes {skew:.1f} degrees from a right angle" if skew > 0.1 else ""
        raise refuse(path, found, f"one tilt of up to {_STEEPEST_TILT:g} degrees; resample the image to a right grid")
    found = f"a gantry tilt (a shear) of {tilt.degrees:.2f} degrees, planes {tilt.distance_mm:.4g} mm apart"
    findings.append(Finding(topic="orientation", found=found, decided="straightened by interpolation", is_warning=True))


def _told(grid: Grid | None) -> str:
    """The place of a grid in words: its axes, spacing and first voxel."""
    assert grid is not None
    letters = np.array([["L", "P", "I"], ["R", "A", "S"]])
    axes = ""
    for axis in range(3):
        column = grid.affine[:3, axis]
        world = int(np.abs(column).argmax())
        axes += str(letters[int(column[world] > 0), world])
    origin = ", ".join(f"{o:.4g}" for o in grid.origin)
    return f"axes {axes}, {in_words(grid.spacing, 4)} mm, from ({origin}) mm"


def _other(name: str) -> str:
    return "qform" if name == "sform" else "sform"


def _note(found: str, decided: str) -> Finding:
    return Finding(topic="place", found=found, decided=decided)


def _warning(found: str, decided: str) -> Finding:
    return Finding(topic="place", found=found, decided=decided, is_warning=True)
