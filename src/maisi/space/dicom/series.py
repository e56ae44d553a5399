"""One CT series of a folder as a `Volume`, with what was found on the way."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi.errors import InvalidVolumeError
from maisi.space.checks import bad_volume, check_spacing
from maisi.space.dicom.alike import continues, groups_of_alike, names, without_scouts
from maisi.space.dicom.copies import without_copies
from maisi.space.dicom.opening import broken_refused, syntax_of
from maisi.space.dicom.padding import AIR, BELOW_AIR
from maisi.space.dicom.pixels import check_decodable, check_rescales, hounsfield
from maisi.space.dicom.place import placed
from maisi.space.dicom.plane import Plane, planes_of
from maisi.space.dicom.scan import WITHOUT_POSITION, Scanned, check_whole, listed, relative, scan, summary
from maisi.space.dicom.slices import Slices
from maisi.space.dicom.stacks import chosen_stack
from maisi.space.grid import Grid
from maisi.space.orientation import turn_volume
from maisi.space.reading import Finding, ReadOptions
from maisi.space.values import settle_values
from maisi.space.volume import Volume

_LOOKS_LIKE_AIR = -500.0  # HU; a hundredth of a CT of a patient at the least is lung, gas or the air around
_LOWEST_SHARE = 1.0  # percent


def read_series(folder: str | Path, options: ReadOptions | None = None) -> tuple[Volume, list[Finding]]:
    """The CT series of a folder (with its subfolders) or of one multi-frame file, in HU along RAS, and what was found.

    Slices are sorted by their position along the normal, each with its own rescale slope and intercept. Padding is
    -1024 HU before anything is computed with it. A gantry tilt is straightened, an oblique stack interpolated, see
    `turn_to_ras`.

    Passed over, with a finding that names them: scouts (marked, or one or two views unlike the stack), sheets without
    a position, other DICOM (dose reports, secondary captures, structure sets, PET, DICOMDIR), and what is not DICOM
    but named as a companion (a text, a table, a picture, README). Equal copies of a slice count once.

    `options.series` (a SeriesInstanceUID) chooses among several series, `options.acquisition` (such as "2" or
    "kernel=B30f") among several stacks of slices in one series: acquisitions, phases, reconstructions, stations.

    Raises `InvalidVolumeError`, with what was found, for no CT, for several series or stacks of which none was chosen,
    for a file in the series that is empty, cut short, damaged or foreign (a slice may be missing), for missing or
    duplicate slices, uneven spacing, mixed sizes or orientations, values that are not HU, and pixels in a coding whose
    plug-in is not installed.
    """
    folder, options = Path(folder), options or ReadOptions()
    if options.modality != "ct":
        raise bad_volume(folder, f"DICOM read as {options.modality}", "DICOM of CT; MR as .nii or .nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom warns of values that are checked here
        return _read(folder, options)


def read_slices(folder: Path, options: ReadOptions) -> Slices:
    """The images of the series that `read_series` reads, without their pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        planes, grid, _ = _stack(folder, options)
        return Slices.of_planes(planes, grid, folder)


def _read(folder: Path, options: ReadOptions) -> tuple[Volume, list[Finding]]:
    planes, grid, findings = _stack(folder, options)
    check_spacing(grid, folder, bad_volume)
    array, is_padding, values = _values(planes, folder, options)
    array, is_padding, judged = settle_values(array, folder, options, is_padding)
    return turn_volume(array, grid, "ct", is_padding), findings + values + judged


def _stack(folder: Path, options: ReadOptions) -> tuple[list[Plane], Grid, list[Finding]]:
    """The planes of the one series and stack in order along their normal, their grid, and what was found."""
    scanned = scan(folder)
    planes, findings = _series(scanned, folder, options.series)
    check_decodable(planes)
    planes, copies = without_copies(planes, folder, lambda plane: hounsfield([plane])[0])
    planes, scouts = without_scouts(planes)
    findings += copies + _passed_over("CT scout without a mark", names(scouts, folder))
    planes, stacks = chosen_stack(planes, options.acquisition, folder)
    _check_sheets(scanned, planes, folder)
    beside = [
        *names(scouts, folder),
        *(relative(f.path, folder) for f in scanned if f.header is not None and f.kind != "CT"),
    ]
    planes, grid, place = _placed(planes, folder, beside)
    return planes, grid, findings + stacks + place


def _series(scanned: Sequence[Scanned], folder: Path, series: str | None) -> tuple[list[Plane], list[Finding]]:
    """The planes of the chosen series, and what was passed over."""
    by_series: dict[str, list[Scanned]] = defaultdict(list)
    for file in scanned:
        if file.kind == "CT" and file.fault is None:
            by_series[file.series].append(file)
    if not by_series:
        _check_some_ct(scanned, folder)
    if series is not None and series not in by_series:
        raise bad_volume(folder, f"no CT series {series}", f"one of: {_listing(by_series)}")
    findings: list[Finding] = []
    if series is None and len(by_series) > 1:
        series, findings = _only_stack(by_series, folder)
    chosen = next(iter(by_series)) if series is None else series
    check_whole(scanned, chosen, folder)
    others = [f for f in scanned if f.kind != "CT" or f.fault]
    findings += _others_passed_over(others, folder)
    return _planes(by_series[chosen]), findings


def _check_some_ct(scanned: Sequence[Scanned], folder: Path) -> None:
    damaged = {f.series for f in scanned if f.fault}
    found = f"no CT image among {len(scanned)} files: {summary(scanned, folder)}"
    accepted = "a folder of one DICOM CT series" if not damaged else "a folder of one DICOM CT series, its files whole"
    raise bad_volume(folder, found, accepted)


def _only_stack(by_series: dict[str, list[Scanned]], folder: Path) -> tuple[str, list[Finding]]:
    """The one series that can be a volume beside others of single views, which are scouts."""
    planes = {uid: _planes(files) for uid, files in by_series.items()}
    largest = {uid: len(groups_of_alike(found)[0]) for uid, found in planes.items()}
    stacks = [uid for uid, count in largest.items() if count > 1]
    if len(stacks) == 1 and largest[stacks[0]] > 2:
        stack = groups_of_alike(planes[stacks[0]])[0]
        views = [plane for uid, found in planes.items() if uid != stacks[0] for plane in found]
        if not any(continues(plane, stack) for plane in views):
            return stacks[0], _passed_over("CT scout without a mark", names(views, folder))
    raise bad_volume(
        folder,
        f"{len(by_series)} CT series: {_listing(by_series)}",
        "one series, or --series with the UID of one",
    )


def _listing(by_series: dict[str, list[Scanned]]) -> str:
    return "; ".join(f"{uid} ({_described(files)})" for uid, files in sorted(by_series.items()))


def _described(files: Sequence[Scanned]) -> str:
    description = str(files[0].header.get("SeriesDescription") or "no description").strip()
    return f"{description}, {len(files)} {'file' if len(files) == 1 else 'files'}"


def _planes(files: Sequence[Scanned]) -> list[Plane]:
    planes = []
    for file in files:
        with broken_refused(file.path):
            planes += planes_of(file.header, file.path, str(syntax_of(file.header)))
    return planes


def _others_passed_over(others: Sequence[Scanned], folder: Path) -> list[Finding]:
    """Findings that name what lies beside the series; companions that are not DICOM are no reason to warn."""
    companions = [f for f in others if f.kind == "not DICOM" and f.fault is None]
    images = [f for f in others if f not in companions]
    findings = []
    for files, is_warning in ((images, True), (companions, False)):
        if files:
            found = summary(files, folder)
            findings.append(Finding(topic="series", found=found, decided="passed over", is_warning=is_warning))
    return findings


def _passed_over(kind: str, files: Sequence[str]) -> list[Finding]:
    if not files:
        return []
    found = f"{len(files)} {kind} ({listed(files)})"
    return [Finding(topic="series", found=found, decided="passed over", is_warning=True)]


def _placed(planes: Sequence[Plane], folder: Path, beside: Sequence[str]) -> tuple[list[Plane], Grid, list[Finding]]:
    """The planes in order with their grid; a refusal names the images that were passed over, too."""
    try:
        return placed(planes, folder)
    except InvalidVolumeError as error:
        if not beside:
            raise
        raise InvalidVolumeError(f"{error}; passed over as no slices: {listed(beside)}") from error


def _check_sheets(scanned: Sequence[Scanned], planes: Sequence[Plane], folder: Path) -> None:
    """Nothing, or the refusal of so many sheets like the slices that they may be those which lie between these."""
    first = planes[0]
    series = {str(file.header.get("SeriesInstanceUID")) for file in scanned if file.path == first.path}
    like = [
        relative(file.path, folder)
        for file in scanned
        if file.kind == WITHOUT_POSITION and file.series in series
        if (file.header.get("Columns"), file.header.get("Rows")) == first.size
        and file.header.get("ImageOrientationPatient")
    ]
    if len(like) >= max(2, len(planes) - 1):
        found = f"{len(like)} images that look like the {len(planes)} slices but have no position: {listed(like)}"
        raise bad_volume(folder, found, "slices with ImagePositionPatient")


def _values(
    planes: Sequence[Plane], folder: Path, options: ReadOptions
) -> tuple[np.ndarray, np.ndarray | None, list[Finding]]:
    """HU `[column row slice]` with declared padding as air, where that is, and what was found of them."""
    without = [plane for plane in planes if plane.rescale is None]
    if without and len(without) < len(planes):
        found = f"{len(without)} of {len(planes)} slices without RescaleSlope and RescaleIntercept"
        raise bad_volume(folder, f"{found}: {listed(names(without, folder))}", "a rescale in every slice, or in none")
    array, is_padding = hounsfield(planes)
    check_rescales(array, planes, folder)
    findings = _rescale_findings(planes, folder)
    if is_padding is not None:
        count = int(np.count_nonzero(is_padding))
        found = f"{count} voxels of padding ({count / array.size:.1%})"
        findings.append(Finding(topic="padding", found=found, decided=f"taken as air, {AIR:g} HU"))
    is_told = options.trust_hu or options.hu_offset != 0 or options.hu_window is not None
    if without and not is_told:
        findings.append(_taken_as_hu(array, is_padding, folder))
    return array, is_padding, findings


def _taken_as_hu(array: np.ndarray, is_padding: np.ndarray | None, folder: Path) -> Finding:
    """The finding that stored values without rescale are HU as they are, or the refusal of others."""
    scanned = array[array >= BELOW_AIR] if is_padding is None else array[(array >= BELOW_AIR) & ~is_padding]
    if not len(scanned) or np.percentile(scanned, _LOWEST_SHARE) > _LOOKS_LIKE_AIR:
        low, high = float(scanned.min(initial=np.inf)), float(scanned.max(initial=-np.inf))
        found = f"slices without RescaleSlope and RescaleIntercept, and stored values from {low:g} to {high:g}, no HU"
        accepted = "slices with a rescale, or stored HU; --hu-offset, such as -1024, makes them HU"
        raise bad_volume(folder, found, accepted)
    found = "slices without RescaleSlope and RescaleIntercept, whose stored values look like HU"
    return Finding(topic="values", found=found, decided="taken as HU", is_warning=True)


def _rescale_findings(planes: Sequence[Plane], folder: Path) -> list[Finding]:
    findings = []
    by_rescale: dict[tuple[float, float], list[Plane]] = defaultdict(list)
    for plane in planes:
        if plane.rescale is not None:
            by_rescale[plane.rescale].append(plane)
    if len(by_rescale) > 1:
        pairs = listed(
            [
                f"{slope:g} and {intercept:g} ({_few(same, folder)})"
                for (slope, intercept), same in sorted(by_rescale.items())
            ]
        )
        found = f"slope and intercept that change from slice to slice: {pairs}"
        findings.append(Finding(topic="values", found=found, decided="each slice by its own", is_warning=True))
    inverted = [plane for plane in planes if plane.photometric == "MONOCHROME1"]
    if inverted:
        found = f"{len(inverted)} slices in MONOCHROME1, to be shown inverted"
        findings.append(Finding(topic="values", found=found, decided="HU as stored: it changes their display alone"))
    return findings


def _few(planes: Sequence[Plane], folder: Path) -> str:
    """Up to three planes by the names of their files, more by their number."""
    return ", ".join(names(planes, folder)) if len(planes) <= 3 else f"{len(planes)} slices"
