"""Whether a generated volume is what was asked for, as far as Hounsfield units alone can tell."""

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.volume import LabelMap, Volume

LEAST_SHARE = 0.5
"""Of the voxels that labels name as tissue, or as outside of the body, at least this part must look like it."""

LEAST_VOXELS = 100
"""What is named in fewer voxels is not judged."""


def problems_of(volume: Volume, labels: LabelMap | None) -> tuple[str, ...]:
    """What is wrong with a volume, a sentence each; none when nothing is.

    A volume of one value is no image. Of a CT, what the labels name as tissue is to be brighter than the vocabulary's
    threshold of air, and what they leave as outside darker.
    """
    if float(volume.array.min()) == float(volume.array.max()):
        return (f"every voxel is {float(volume.array.min()):g}",)
    if labels is None or volume.modality != "ct":
        return ()
    vocabulary, ids = load_vocabulary(), labels.array
    gas = [*vocabulary.group("lungs"), *vocabulary.group("airways"), vocabulary.id("air")]
    dense = volume.array > vocabulary.body.air_hu
    outside, tissue = ids == 0, (ids > 0) & ~np.isin(ids, gas)
    shares = {
        f"of what the labels name as tissue {{}} is brighter than {vocabulary.body.air_hu:g} HU": _share(dense, tissue),
        f"of what lies outside of the labels {{}} is darker than {vocabulary.body.air_hu:g} HU": _share(
            ~dense, outside
        ),
    }
    return tuple(
        sentence.format(f"{100 * share:.0f} %")
        for sentence, share in shares.items()
        if share is not None and share < LEAST_SHARE
    )


def _share(found: np.ndarray, asked: np.ndarray) -> float | None:
    count = int(asked.sum())
    return int((found & asked).sum()) / count if count >= LEAST_VOXELS else None
