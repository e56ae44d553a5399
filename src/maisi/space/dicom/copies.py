"""Equal copies of one image, which count once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maisi.space.checks import bad_volume
from maisi.space.dicom.alike import are_alike, names
from maisi.space.dicom.plane import Plane
from maisi.space.dicom.scan import listed
from maisi.space.reading import Finding


def without_copies(
    planes: Sequence[Plane], folder: Path, values: Callable[[Plane], np.ndarray]
) -> tuple[list[Plane], list[Finding]]:
    """The planes, each SOP instance once; `values` gives the HU of a plane.

    Raises `InvalidVolumeError` where files of one SOPInstanceUID differ in place or values: which of them is right
    cannot be known.
    """
    by_uid: dict[tuple[str, int], list[Plane]] = defaultdict(list)
    for plane in planes:
        by_uid[(plane.uid or str(plane.path), plane.frame)].append(plane)
    copies: list[Plane] = []
    for same in by_uid.values():
        for other in same[1:]:
            if not _are_equal(same[0], other, values):
                both = " and ".join(names([same[0], other], folder))
                found = f"two different images of one SOPInstanceUID {same[0].uid}: {both}"
                raise bad_volume(folder, found, "an image once, or equal copies of it")
            copies.append(other)
    if not copies:
        return list(planes), []
    files = names(copies, folder)
    found = f"{len(files)} equal {'copy' if len(files) == 1 else 'copies'} of slices: {listed(files)}"
    away = {id(plane) for plane in copies}
    kept = [plane for plane in planes if id(plane) not in away]
    return kept, [Finding(topic="slices", found=found, decided="counted once", is_warning=True)]


def _are_equal(a: Plane, b: Plane, values: Callable[[Plane], np.ndarray]) -> bool:
    if (
        a.frame == b.frame
        and a.path.stat().st_size == b.path.stat().st_size
        and a.path.read_bytes() == b.path.read_bytes()
    ):
        return True
    return are_alike(a, b) and np.allclose(a.position, b.position) and np.array_equal(values(a), values(b))
