"""Planes that can be slices of one stack, and those beside it that cannot: scouts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi.space.dicom.plane import Plane

_SAME_DIRECTION = 1e-3  # largest difference of direction cosines that is rounding
_SAME_SPACING = 1e-3  # relative
_FEW = 2  # planes: a front and a side view
_OF_A_STACK = 3  # planes beside which a few others are no stack of their own
_NEAR_STEPS = 1.3  # a plane so near to the end of a stack continues it


def are_alike(a: Plane, b: Plane) -> bool:
    """Whether two planes have one orientation, size and pixel spacing."""
    return (
        a.size == b.size
        and bool(np.abs(a.directions - b.directions).max() <= _SAME_DIRECTION)
        and np.allclose(a.pixel_mm, b.pixel_mm, rtol=_SAME_SPACING, atol=0)
    )


def groups_of_alike(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The planes by orientation, size and pixel spacing, the largest group first."""
    groups: list[list[Plane]] = []
    for plane in planes:
        group = next((g for g in groups if are_alike(g[0], plane)), None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
    return sorted(groups, key=len, reverse=True)


def without_scouts(planes: Sequence[Plane]) -> tuple[list[Plane], list[Plane]]:
    """The planes without scouts, and these: one or two views unlike a stack, which they do not continue."""
    groups = groups_of_alike(planes)
    stacks = [group for group in groups if len(group) >= _OF_A_STACK]
    if not stacks:
        return list(planes), []
    scouts = [
        plane
        for group in groups
        if len(group) <= _FEW
        for plane in group
        if not any(continues(plane, stack) for stack in stacks)
    ]
    away = {id(plane) for plane in scouts}
    return [plane for plane in planes if id(plane) not in away], scouts


def continues(plane: Plane, stack: Sequence[Plane]) -> bool:
    """Whether a plane lies where the stack lacks one: in a gap of it, or next beyond its ends."""
    first = stack[0]
    along = np.sort([(p.position - first.position) @ first.normal for p in stack])
    offset = plane.position - first.position
    here = float(offset @ first.normal)
    sideways = float(np.linalg.norm(offset - here * first.normal))
    step = float(np.median(np.diff(along)))
    drift = np.linalg.norm(stack[-1].position - first.position) + step  # what a tilted stack shifts by
    if sideways > max(min(first.pixel_mm), drift if _leans(stack) else 0.0):
        return False
    if along[0] - _NEAR_STEPS * step <= here <= along[-1] + _NEAR_STEPS * step:
        return bool(np.abs(along - here).min() > 0.5 * step)
    return False


def _leans(stack: Sequence[Plane]) -> bool:
    offset = stack[-1].position - stack[0].position
    return float(np.linalg.norm(offset - (offset @ stack[0].normal) * stack[0].normal)) > min(stack[0].pixel_mm)


def names(planes: Sequence[Plane], folder: Path) -> list[str]:
    """The names of the files of planes, each once."""
    return list(dict.fromkeys(str(p.path.relative_to(folder)) if p.path != folder else p.path.name for p in planes))
