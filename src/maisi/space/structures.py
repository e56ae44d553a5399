"""Structures that may overlap, each a mask of its own, as one map of ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maisi.space.grid import Grid
from maisi.space.reading import Finding
from maisi.space.stored_labels import StoredLabels, turned
from maisi.space.volume import id_counts


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of a file or folder that holds masks: the box around it and what is in it."""

    name: str
    corner: tuple[int, ...]
    mask: np.ndarray
    num_voxels: int


def boxed(name: str, mask: np.ndarray) -> list[Structure]:
    """The structure in its box; none of an empty mask."""
    if not mask.any():
        return []
    spans = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(slice(int(along[0]), int(along[-1]) + 1))
    box = mask[tuple(spans)].copy()
    return [Structure(name, tuple(span.start for span in spans), box, int(np.count_nonzero(box)))]


def painted(structures: Sequence[Structure], grid: Grid, found: str, decided: str) -> StoredLabels:
    """One map of structures on a grid in file order, numbered in their order; of two at one place the smaller counts.

    `found` and `decided` are what is to be told of the file.
    """
    names = {number: each.name for number, each in enumerate(structures, start=1)}
    ids = np.zeros(grid.shape, np.uint16)
    num_lost: dict[str, int] = {}
    for number, each in sorted(enumerate(structures, start=1), key=lambda pair: -pair[1].num_voxels):
        part = ids[tuple(slice(a, a + n) for a, n in zip(each.corner, each.mask.shape, strict=True))]
        covered = id_counts(part[each.mask])
        for id in np.flatnonzero(covered[1:]) + 1:
            pair = f"{each.name} over {names[int(id)]}"
            num_lost[pair] = num_lost.get(pair, 0) + int(covered[id])
        part[each.mask] = number
    findings = [Finding(topic="format", found=found, decided=decided)]
    if num_lost:
        worst = sorted(num_lost.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{pair} ({count})" for pair, count in worst[:6]) + (", ..." if len(worst) > 6 else "")
        findings.append(
            Finding(
                topic="format",
                found=f"{sum(num_lost.values())} voxels that several structures claim: {shown}",
                decided="the smaller structure is kept",
                is_warning=True,
            )
        )
    labels = turned(ids.astype(np.uint8) if len(names) < 256 else ids, grid)
    return StoredLabels(labels, names, tuple(findings))
