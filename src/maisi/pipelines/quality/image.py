"""What Hounsfield units tell of a CT that was made after labels."""

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from maisi.anatomy.measure import Faces, Look
from maisi.anatomy.references import HuRange, Phase, hu_range, hu_references
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary
from maisi.pipelines.quality.labels import Findings
from maisi.pipelines.quality.report import Finding, Level
from maisi.space.volume import LabelMap, Volume

LEAST_SHARE = 0.5
"""Of the voxels that labels name as tissue, or as outside of the body, at least this part must look like it."""

LEAST_VOXELS = 100
"""What is named in fewer voxels is not judged."""

SPREAD_RATIO = 3.0
"""A structure whose spread is so many times larger or smaller than in real CTs is told."""

TARGETS = "targets"  # the group of volumes to irradiate, which are of no one tissue
AIR_HU = -1000.0
EDGE_FACES, EDGE_STEP_HU = 100, 150.0
"""An edge is judged from so many faces on, where what lies at both sides is to differ by so much on the whole."""

EDGE_INFO, EDGE_FAIL = 0.25, 0.1
"""With less than this share of the step that is to be at an edge, it is told, or fails."""


def image_findings(
    volume: Volume, labels: LabelMap | None, vocabulary: Vocabulary, is_held: bool, outside_is_air: bool
) -> tuple[Finding, ...]:
    """What is wrong with a volume as a whole.

    A volume of one value is no image. Of a CT, what the labels name as tissue is to be brighter than the vocabulary's
    threshold of air, and, where `outside_is_air`, what they leave out darker; `is_held`: or it fails.
    """
    least, most = float(volume.array.min()), float(volume.array.max())
    if least == most:
        return (Finding(check="image", level="fail", words=f"every voxel is {least:g}"),)
    if labels is None or volume.modality != "ct":
        return ()
    gas = [*vocabulary.group("lungs"), *vocabulary.group("airways"), vocabulary.id("air")]
    dense, limit = volume.array > vocabulary.body.air_hu, f"{vocabulary.body.air_hu:g} HU"
    outside, tissue = labels.array == BACKGROUND, (labels.array > 0) & ~np.isin(labels.array, gas)
    shares = {
        f"of what the labels name as tissue {{}} is brighter than {limit}": _share(dense, tissue),
    }
    if outside_is_air:
        shares[f"of what lies outside of the labels {{}} is darker than {limit}"] = _share(~dense, outside)
    level: Level = "fail" if is_held else "info"
    return tuple(
        Finding(check="image", level=level, words=sentence.format(f"{100 * share:.0f} %"))
        for sentence, share in shares.items()
        if share is not None and share < LEAST_SHARE
    )


def phase_of(modality: str, found: Mapping[int, Look], vocabulary: Vocabulary) -> Phase | None:
    """With contrast medium or without: what the modality says, else what the aorta shows; None where neither tells."""
    if modality in ("ct with contrast", "ct without contrast"):
        return "contrast" if modality == "ct with contrast" else "plain"
    aorta = found.get(vocabulary.id("aorta"))
    if aorta is None or not aorta.is_core:
        return None
    return "contrast" if aorta.median > hu_references().contrast_hu else "plain"


def ranges(ids: Collection[int], vocabulary: Vocabulary, phase: Phase | None) -> dict[int, HuRange]:
    """What the median HU of each structure is to be, of those that are tissue and of which something is known."""
    found = {id: hu_range(id, vocabulary, phase) for id in set(ids) - set(vocabulary.group(TARGETS))}
    return {id: each for id, each in found.items() if each is not None}


def hu_findings(found: Mapping[int, Look], expected: Mapping[int, HuRange], held: Collection[int]) -> Findings:
    """Medians that are unusual, or beyond belief, and spreads far from those of real CTs.

    Only what is held to them and has a core fails: small structures are full of partial volume.
    """
    findings: Findings = defaultdict(list)
    for id, look in found.items():
        if id not in expected:
            continue
        wanted = expected[id]
        if not _within(look.median, wanted.usual):
            beyond = not _within(look.median, wanted.believable)
            level: Level = "fail" if beyond and look.is_core and id in held else "info"
            kind, bounds = ("believable", wanted.believable) if beyond else ("usual", wanted.usual)
            words = f"median {look.median:.0f} HU; {kind} is {bounds[0]:.0f} to {bounds[1]:.0f} ({wanted.source})"
            findings[id].append(Finding(check="hu", level=level, words=words))
        if wanted.spread and look.is_core and not 1 / SPREAD_RATIO <= look.spread / wanted.spread <= SPREAD_RATIO:
            words = f"spread {look.spread:.0f} HU; in real CTs {wanted.spread:.0f}"
            findings[id].append(Finding(check="spread", level="info", words=words))
    return findings


def edges(
    faces: Mapping[tuple[int, int], Faces], expected: Mapping[int, HuRange], outside_is_air: bool
) -> dict[int, float]:
    """By structure, the step in HU at its surface as a share of what the means of both sides would make.

    The share is the slope of the least squares line of the steps to each neighbour, weighted by faces. Left out is what
    has few faces, or neighbours that look like it.
    """
    means = {id: each.mean for id, each in expected.items()} | ({BACKGROUND: AIR_HU} if outside_is_air else {})
    sums = {id: np.zeros(3) for id in expected}
    for (inner, outer), face in faces.items():
        if inner in sums and outer in means:
            step = means[outer] - means[inner]
            sums[inner] += face.count * np.array([1.0, face.step * step, step**2])
    return {
        id: float(products / squares)
        for id, (count, products, squares) in sums.items()
        if count >= EDGE_FACES and squares >= count * EDGE_STEP_HU**2
    }


def edge_findings(found: Mapping[int, float], held: Collection[int]) -> Findings:
    """Structures that do not stand out from what is beside them."""
    findings: Findings = defaultdict(list)
    for id, share in found.items():
        if share < EDGE_INFO:
            level: Level = "fail" if share < EDGE_FAIL and id in held else "info"
            words = f"its edge has {share:.0%} of the step in HU that it is to have"
            findings[id].append(Finding(check="edge", level=level, words=words))
    return findings


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _share(found: np.ndarray, asked: np.ndarray) -> float | None:
    count = int(asked.sum())
    return int((found & asked).sum()) / count if count >= LEAST_VOXELS else None
