"""Whether two files of any format show the same."""

from pathlib import Path

import numpy as np

from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidRequestError
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume


def same_content(first: Path, second: Path) -> bool:
    """Whether both are volumes of equal values, or label maps of equal structures, on one grid."""
    for read in (_volume, _labels):
        contents = read(first), read(second)
        if contents[0] is not None and contents[1] is not None:
            return _equal(contents[0], contents[1])
    return False


def _volume(path: Path) -> Volume | None:
    try:
        return open_volume(path, ReadOptions(trust_hu=True))[0]
    except InvalidRequestError:
        return None


def _labels(path: Path) -> LabelMap | None:
    try:
        return open_labels(path)[0]
    except InvalidRequestError:
        return None


def _equal(a: Volume | LabelMap, b: Volume | LabelMap) -> bool:
    return a.grid.is_close(b.grid) and bool(np.array_equal(a.array, b.array))
