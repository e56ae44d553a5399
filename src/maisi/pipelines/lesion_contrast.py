"""Lesions of a generated CT that the networks draw in no HU of a lesion, given those of the reference table.

A bundle that hardly saw a tumour draws something where the labels have one: in a lung a mottle of air and tissue. What
it draws stays where it is within the spread of the vocabulary's HU; else its level is moved and its texture damped, as
`pipelines.inpaint` does.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from scipy import ndimage

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.morphology import parts
from maisi.anatomy.vocabulary import Vocabulary
from maisi.pipelines.blend import RING_MM, Contrast, core_of, expected_hu, soft_edge, surroundings, with_contrast
from maisi.pipelines.quality.report import Finding
from maisi.space.volume import LabelMap, Volume

LEAST_VOXELS = 4
"""Of a part of a lesion whose HU mean anything."""


def lesions_to_tone(labels: LabelMap, vocabulary: Vocabulary, claimed: Collection[str]) -> tuple[int, ...]:
    """The ids of the lesions in a map whose HU are known, and that the networks do not claim to draw."""
    present = set(np.unique(labels.array).tolist())
    own = [id for id in lesion_ids(vocabulary) if id in present and vocabulary.structure(id).hu is not None]
    return tuple(id for id in own if vocabulary.name(id) not in claimed)


def finding_of(name: str, contrast: Contrast) -> Finding:
    """What a report says of a lesion: whose HU it has."""
    drawn = f"the networks drew {contrast.network_hu:.0f} HU, uneven by {contrast.network_sd:.0f}"
    if contrast.made_by == "network":
        return Finding(check="hu", level="info", words=f"{name}: {drawn}")
    return Finding(check="hu", level="info", words=f"{name}: {contrast.expected_hu:.0f} HU by the table; {drawn}")


def with_reference_contrast(
    volume: Volume, labels: LabelMap, ids: Collection[int], vocabulary: Vocabulary
) -> tuple[Volume, Mapping[int, Contrast]]:
    """The CT with each part of these lesions as `with_contrast` makes it, and of each id what was made of its largest.

    Away from their blurred edges every voxel keeps its bits.
    """
    array, told = volume.array.copy(), dict[int, Contrast]()
    for id in ids:
        largest = 0
        numbered, _ = parts(labels.array == id)
        for number, box in enumerate(ndimage.find_objects(numbered), start=1):
            margin = [int(np.ceil(RING_MM[1] / s)) + 2 for s in labels.grid.spacing]
            around = tuple(slice(max(0, part.start - m), part.stop + m) for part, m in zip(box, margin, strict=True))
            mask = numbered[around] == number
            if mask.sum() < LEAST_VOXELS:
                continue
            array[around], contrast = _toned(array[around], labels.array[around], mask, id, volume, vocabulary)
            if mask.sum() > largest:
                largest, told[id] = int(mask.sum()), contrast
    return replace(volume, array=array), told


def _toned(
    ct: np.ndarray, ids: np.ndarray, mask: np.ndarray, id: int, volume: Volume, vocabulary: Vocabulary
) -> tuple[np.ndarray, Contrast]:
    weight = soft_edge(mask)
    hosts = np.isin(ids, vocabulary.members(vocabulary.structure(id).host or "body"))
    ring = surroundings(mask, hosts, volume.grid.spacing)
    expected, tolerance = expected_hu(ct, ids, ring, id, vocabulary)
    values, contrast = with_contrast(
        ct, np.zeros_like(ct), core_of(weight, mask), expected, tolerance, float(np.median(ct[ring])), "reference"
    )
    if contrast.made_by == "network":
        return ct, contrast
    return np.where(weight > 0, ct + weight * (values - ct), ct).astype(ct.dtype), contrast
