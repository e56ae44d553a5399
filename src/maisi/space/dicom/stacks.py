"""The stacks of slices in one series: acquisitions, phases, reconstructions, stations, and the choice of one.

Planes are taken apart only where they are no single stack: where two lie at one place or differ in size, spacing or
orientation, where the planes of two acquisitions (or of two kernels, phases, ...) lie between each other, and where a
gap lies between two stations. A scanner that numbers each turn of an axial scan leaves one stack.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from maisi.space.checks import bad_volume
from maisi.space.dicom.alike import are_alike, groups_of_alike, names
from maisi.space.dicom.plane import KEYS, Plane, cosines
from maisi.space.dicom.scan import listed
from maisi.space.grid import TOLERANCE_VOXELS
from maisi.space.reading import Finding

SAME_PLACE_MM = 0.01
ALL = "all"  # the `--acquisition` that takes the slices of a series together

_CLOCKS = ("time", "content")  # differ from slice to slice of one acquisition; tell phases apart, no stations
_UNIFORM = ("kernel", "thickness", "kvp", "contrast", "phase", "temporal", "frame", "study")  # warned of where joined
_NUMBERED = ("acquisition", "temporal", "phase", "trigger", "stack")  # what a number alone names in a single stack
_SHOWN = 20  # stacks that an error lists
_STATION = 3  # slices that make a stack of their own beside a gap


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes that belong together, and what tells them from the other stacks of their series."""

    planes: list[Plane]
    labels: dict[str, str]

    @property
    def name(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.labels.items())

    def __str__(self) -> str:
        along = positions_along(self.planes)
        step = f"{np.median(np.diff(along)):.4g} mm apart, " if len(along) > 1 else ""
        z = sorted(float(p.position[2]) for p in self.planes)
        return f"{self.name} ({len(self.planes)} slices, {step}z from {z[0]:g} to {z[-1]:g} mm)"


def chosen_stack(planes: list[Plane], acquisition: str | None, folder: Path) -> tuple[list[Plane], list[Finding]]:
    """The planes of the one stack of a series, or of the one that `acquisition` names.

    Raises `InvalidVolumeError` with a list of the stacks where there are several and none, or not one, is named.
    """
    parts = [planes] if acquisition == ALL else _parts(planes)
    if len(parts) == 1:
        if acquisition not in (None, ALL):
            _check_named(parts[0], acquisition, folder)
        return parts[0], _joined(parts[0])
    _check_no_single(parts, folder)
    stacks = _labelled(parts)
    matching = stacks if acquisition is None else [s for s in stacks if _matches(s, acquisition)]
    if len(matching) == 1:
        found = f"{len(stacks)} stacks of slices in one series: {_listing(stacks)}"
        return matching[0].planes, [Finding(topic="series", found=found, decided=f"took {matching[0].name}")]
    example = _shortest(stacks[0], stacks)
    accepted = f"one of them, by --acquisition, such as --acquisition {example}"
    if acquisition is not None:
        what = f"{len(matching)} stacks" if matching else "no stack"
        stacks = matching or stacks
        raise bad_volume(folder, f"{what} named {acquisition} in the series, which holds {_listing(stacks)}", accepted)
    raise bad_volume(folder, f"{len(stacks)} stacks of slices in one series: {_listing(stacks)}", accepted)


def _check_no_single(parts: list[list[Plane]], folder: Path) -> None:
    """Nothing, or the refusal of slices that stand alone, unlike the others, where these lack one."""
    single = [part[0] for part in parts if len(part) == 1]
    if not single:
        return
    largest = max(parts, key=len)[0]
    if all(are_alike(plane, largest) for plane in single):
        place = ", ".join(f"{p:g}" for p in largest.position)
        found = f"{len(single)} slices that all lie at one place, ({place}) mm: {listed(names(single, folder))}"
        raise bad_volume(folder, found, "slices with an ImagePositionPatient each")
    unlike = [f"{name} ({_geometry(plane)})" for plane, name in zip(single, names(single, folder), strict=False)]
    found = f"slices of mixed sizes, spacings or orientations: {listed(unlike)} beside {_geometry(largest)}"
    raise bad_volume(folder, found, "slices of one size, pixel spacing and orientation")


def _geometry(plane: Plane) -> str:
    columns, rows = plane.size
    return (
        f"{columns}x{rows} pixels of {plane.pixel_mm[0]:g}x{plane.pixel_mm[1]:g} mm along {cosines(plane.directions)}"
    )


def positions_along(planes: Sequence[Plane]) -> np.ndarray:
    """The sorted positions of alike planes along their normal, mm, from the first."""
    first = planes[0]
    along = np.sort([(p.position - first.position) @ first.normal for p in planes])
    return along - along[0]


def is_even(planes: Sequence[Plane]) -> bool:
    """Whether the planes follow each other on one line at one distance, to a tenth of it and of a pixel."""
    first = planes[0]
    ordered = sorted((p.position for p in planes), key=lambda position: float(position @ first.normal))
    if len(ordered) < 2:
        return False
    steps = np.linspace(ordered[0], ordered[-1], len(ordered))
    off = np.array(ordered) - steps
    along = off @ first.normal
    step = float((ordered[-1] - ordered[0]) @ first.normal) / (len(ordered) - 1)
    sideways = np.linalg.norm(off - along[:, None] * first.normal, axis=1)
    is_one_line = sideways.max() <= TOLERANCE_VOXELS * min(first.pixel_mm)
    return bool(step > SAME_PLACE_MM and np.abs(along).max() <= TOLERANCE_VOXELS * step and is_one_line)


def _parts(planes: list[Plane]) -> list[list[Plane]]:
    """The planes taken apart by geometry, then by what tells doubles, planes between each other, and stations apart."""
    return [part for group in groups_of_alike(planes) for part in _divided(group)]


def _divided(planes: list[Plane]) -> list[list[Plane]]:
    key = _dividing_key(planes)
    if key is not None:
        return [part for group in _by(planes, key) for part in _divided(group)]
    if _num_doubles(planes):
        return _repeats(planes)
    return [planes]


def _dividing_key(planes: list[Plane]) -> str | None:
    """What takes the planes apart into proper stacks; None where nothing does or nothing needs to."""
    divisions = {key: _by(planes, key) for key in KEYS}
    divisions = {key: parts for key, parts in divisions.items() if len(parts) > 1 and min(map(len, parts)) > 1}
    doubles = _num_doubles(planes)
    if doubles:
        num_places = len(planes) - doubles
        covering = {k: parts for k, parts in divisions.items() if all(len(part) == num_places for part in parts)}
        divisions = {k: parts for k, parts in divisions.items() if k not in _CLOCKS or k in covering}
        left = {key: sum(map(_num_doubles, parts)) for key, parts in divisions.items()}
        better = [key for key in divisions if left[key] < doubles]
        return min(better, key=lambda k: (left[k], len(divisions[k]), list(KEYS).index(k)), default=None)
    divisions = {key: parts for key, parts in divisions.items() if key not in _CLOCKS}
    between = [key for key, parts in divisions.items() if key in ("frame", "study") or _lie_between(parts)]
    if between:
        return min(between, key=lambda k: (len(divisions[k]), list(KEYS).index(k)))
    if is_even(planes):
        return None
    whole = [key for key, parts in divisions.items() if all(len(p) >= _STATION and is_even(p) for p in parts)]
    return min(whole, key=lambda k: (len(divisions[k]), list(KEYS).index(k)), default=None)


def _by(planes: Sequence[Plane], key: str) -> list[list[Plane]]:
    parts: dict[str, list[Plane]] = defaultdict(list)
    for plane in planes:
        parts[plane.keys.get(key, "none")].append(plane)
    return list(parts.values())


def _places(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Alike planes by their place, in order along the normal."""
    first = planes[0]
    places: list[list[Plane]] = []
    last = -np.inf
    for plane in sorted(planes, key=lambda p: float(p.position @ first.normal)):
        along = float(plane.position @ first.normal)
        if along - last >= SAME_PLACE_MM:
            places.append([])
        places[-1].append(plane)
        last = along
    return places


def _num_doubles(planes: Sequence[Plane]) -> int:
    return len(planes) - len(_places(planes))


def _lie_between(parts: list[list[Plane]]) -> bool:
    """Whether planes of one part lie between those of another."""
    normal = parts[0][0].normal
    ranges = sorted(
        (min(along), max(along)) for along in ([float(p.position @ normal) for p in part] for part in parts)
    )
    return any(low < high - SAME_PLACE_MM for (_, high), (low, _) in pairwise(ranges))


def _repeats(planes: list[Plane]) -> list[list[Plane]]:
    """Planes that are doubled everywhere and differ in nothing but the time or the number: the first of each, ..."""
    places = _places(planes)
    counts = {len(place) for place in places}
    if len(counts) > 1:
        return [planes]
    ordered = [sorted(place, key=_moment) for place in places]
    if any(len({_moment(p) for p in place}) < len(place) for place in ordered):
        return [planes]
    return [[place[turn] for place in ordered] for turn in range(counts.pop())]


def _moment(plane: Plane) -> tuple[str, str, int]:
    return plane.keys.get("time", ""), plane.keys.get("content", ""), plane.number or 0


def _labelled(parts: list[list[Plane]]) -> list[Stack]:
    """The stacks with the fewest labels that tell them apart."""
    found = [_constants(part) for part in parts]
    varying = [
        key for key in found[0] if len({labels.get(key) for labels in found}) > 1 and all(key in f for f in found)
    ]
    single = next((key for key in varying if len({f[key] for f in found}) == len(found)), None)
    keys = varying if single is None else [single, *(k for k in varying if k != single and k not in _CLOCKS)]
    labels = [{key: f[key] for key in keys} for f in found]
    counts = Counter(tuple(named.items()) for named in labels)
    turn: Counter[tuple[tuple[str, str], ...]] = Counter()
    for named in labels:
        same = tuple(named.items())
        if counts[same] > 1:  # told apart by their order in time alone
            turn[same] += 1
            named["repeat"] = str(turn[same])
    return [Stack(part, named) for part, named in zip(parts, labels, strict=True)]


def _constants(planes: Sequence[Plane]) -> dict[str, str]:
    """What all planes of a stack have in common, by name."""
    first = planes[0]
    same = {k: v for k in KEYS if (v := first.keys.get(k, "none")) and all(p.keys.get(k, "none") == v for p in planes)}
    same["size"] = "x".join(map(str, first.size))
    same["pixel"] = "x".join(f"{s:g}" for s in first.pixel_mm)
    same["orientation"] = cosines(first.directions).strip("()").replace(", ", "/")
    return same


def _matches(stack: Stack, acquisition: str) -> bool:
    """Whether each word of `acquisition` ("2", "kernel=B30f", "acquisition=2,kernel=B30f") is a label of the stack."""
    return all(_has(stack.labels, word.strip()) for word in acquisition.split(","))


def _has(labels: dict[str, str], word: str) -> bool:
    key, equals, value = word.partition("=")
    if equals and key.strip().lower() in {*KEYS, *labels}:
        return labels.get(key.strip().lower(), "").lower() == value.strip().lower()
    return word.lower() in {text.lower() for text in labels.values()}


def _shortest(stack: Stack, stacks: list[Stack]) -> str:
    """The shortest words that name a stack and no other."""
    for key, value in stack.labels.items():
        for word in (value, f"{key}={value}"):
            if "," not in word and sum(_matches(s, word) for s in stacks) == 1:
                return word
    return stack.name


def _listing(stacks: Sequence[Stack]) -> str:
    shown = [str(stack) for stack in stacks]
    return "; ".join(shown[:_SHOWN] + ([f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []))


def _check_named(planes: list[Plane], acquisition: str | None, folder: Path) -> None:
    assert acquisition is not None
    labels = _constants(planes)
    numbered = {key: value for key, value in labels.items() if key in _NUMBERED or not value.replace(".", "").isdigit()}
    words = [word.strip() for word in acquisition.split(",")]
    if all(_has(labels if "=" in word else numbered, word) for word in words):
        return
    known = ", ".join(f"{key}={value}" for key, value in labels.items() if value != "none" and key != "orientation")
    found = f"no stack named {acquisition}; the series holds one stack of {len(planes)} slices"
    raise bad_volume(folder, found, f"no --acquisition, or one of its own: {known}")


def _joined(planes: list[Plane]) -> list[Finding]:
    """Warnings of what changes along a stack that is one by its geometry."""
    findings = []
    for key in _UNIFORM:
        values = Counter(plane.keys.get(key, "none") for plane in planes)
        if 1 < len(values) < len(planes):
            counts = listed([f"{value} ({count} slices)" for value, count in values.items()])
            found = f"slices of one stack that differ in their {key}: {counts}"
            findings.append(Finding(topic="slices", found=found, decided="taken together", is_warning=True))
    return findings
