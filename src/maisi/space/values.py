"""Values of files made HU: padding as air, offsets and windows as asked, and a look at whether they are HU."""

from pathlib import Path

import numpy as np

from maisi.space.checks import bad_volume, check_content
from maisi.space.hounsfield import Verdict, judge, looks_like_hu
from maisi.space.padding import find_padding
from maisi.space.reading import Finding, ReadOptions
from maisi.space.volume import OUTSIDE

_TRUST = "--trust-hu to take them as they are"


def settle_values(
    array: np.ndarray, path: Path, options: ReadOptions, padding: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, list[Finding]]:
    """The values `[x y z]` in HU (float32), which voxels were not scanned, and what was found.

    `padding` are voxels that the file itself marks as not scanned; others are found by their value. All of them become
    air, -1024 HU. An MR is given back as it is. Raises `InvalidVolumeError` for values that are not finite, all the
    same, or surely no HU.
    """
    check_content(array, path)
    if options.modality != "ct":
        return array, None, _about_mr(array)
    findings: list[Finding] = []
    if options.hu_window is not None or options.hu_offset != 0:
        array = _rescaled(array, path, options, findings)
    padding = _padding(array, padding, findings)
    if not options.trust_hu:
        _check_hounsfield(array, padding, path, options, findings)
    if padding is not None:
        array = np.where(padding, np.float32(OUTSIDE["ct"]), array)
    return array, padding, findings


def _about_mr(array: np.ndarray) -> list[Finding]:
    if not looks_like_hu(array):
        return []
    return [Finding(topic="values", found="values that look like HU of a CT", decided="read as MR", is_warning=True)]


def _rescaled(array: np.ndarray, path: Path, options: ReadOptions, findings: list[Finding]) -> np.ndarray:
    """The values with the window and the offset that the user gave."""
    if options.hu_window is not None:
        low, high = options.hu_window
        if not (np.isfinite([low, high]).all() and low < high):
            raise bad_volume(path, f"a window from {low:g} to {high:g} HU", "two numbers, the lower first")
        bottom, top = _stored_range(array)
        array = ((array - np.float32(bottom)) * np.float32((high - low) / (top - bottom)) + np.float32(low)).astype(
            "f4"
        )
        found = f"stored values from {bottom:g} to {top:g}"
        findings.append(Finding(topic="values", found=found, decided=f"taken as {low:g} to {high:g} HU, as asked"))
    if options.hu_offset:
        array = array + np.float32(options.hu_offset)
        found = f"an offset of {options.hu_offset:g} asked for"
        findings.append(Finding(topic="values", found=found, decided="added to every stored value"))
    return array


def _stored_range(array: np.ndarray) -> tuple[float, float]:
    """The ends of the range that a window was stretched to: 0..1, -1..1 or 0..255 where the values are such."""
    low, high = float(array.min()), float(array.max())
    for bottom, top in ((0, 1), (-1, 1), (0, 255)):
        if bottom <= low and top / 4 < high <= top:
            return bottom, top
    return low, high


def _padding(array: np.ndarray, marked: np.ndarray | None, findings: list[Finding]) -> np.ndarray | None:
    padding = find_padding(array if marked is None else np.where(marked, np.float32(OUTSIDE["ct"]), array))
    if padding is None:
        return marked
    num = int(np.count_nonzero(padding.mask))
    found = f"{num} voxels ({num / array.size:.1%}) that were not scanned, most at {padding.value:g} HU"
    if padding.is_doubtful:
        found = f"one value, {padding.value:g}, from the corners inwards in {num} voxels ({num / array.size:.1%})"
    finding = Finding(topic="padding", found=found, decided="taken as air", is_warning=padding.is_doubtful)
    findings.append(finding)
    return padding.mask if marked is None else padding.mask | marked


def _check_hounsfield(
    array: np.ndarray, padding: np.ndarray | None, path: Path, options: ReadOptions, findings: list[Finding]
) -> None:
    verdict = judge(array, padding)
    if verdict is None:
        return
    if verdict.is_sure and options.hu_window is None:
        raise bad_volume(path, _found(array, padding, verdict), f"CT in HU; {verdict.remedy}; {_TRUST}")
    found = f"values that may be no HU: {verdict.looks_like}"
    findings.append(
        Finding(topic="values", found=found, decided=f"taken as HU (else: {verdict.remedy})", is_warning=True)
    )


def _found(array: np.ndarray, padding: np.ndarray | None, verdict: Verdict) -> str:
    scanned = array if padding is None or padding.all() else array[~padding]
    low, high = float(scanned.min()), float(scanned.max())
    return f"values from {low:g} to {high:g}, which are not HU of a CT; they look like {verdict.looks_like}"
