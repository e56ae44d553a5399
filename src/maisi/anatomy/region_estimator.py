"""The body regions of a CT without labels, told by its lungs, the size of the body and its bones."""

from functools import lru_cache
from importlib.resources import files

import numpy as np
import yaml
from pydantic import Field

from maisi.anatomy.body import tissue_labels
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidVolumeError
from maisi.shapes import Frozen
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume

_COARSE_MM = (3.0, 3.0, 5.0)


class RegionRules(Frozen):
    """`region_estimator.yaml`."""

    lung_share: float = Field(gt=0, lt=1)
    lung_cm2: float
    neck_mm: float
    abdomen_mm: float
    pelvis_mm: float
    slender_cm2: float
    head_bone_share: float
    pelvis_bone_share: float
    trunk_mm: float


def estimate_span(volume: Volume) -> RegionSpan:
    """The topmost and the bottommost region that a CT shows; raises `InvalidVolumeError` where there is no body.

    Lungs give the place in the body: what lies far enough above them is head and neck, below them first abdomen, then
    the lower body. Without lungs a scan of slender planes is of a head, or of limbs (few bones), and one of a trunk is
    of the abdomen or of the pelvis (many bones), or of both where it is long. How often that is right is in
    `docs/guides/prepare.md`.
    """
    coarse = [max(own, wanted) for own, wanted in zip(volume.grid.spacing, _COARSE_MM, strict=True)]
    small = resample(volume, with_spacing(volume.grid, coarse))
    assert isinstance(small, Volume)
    return span_of_tissues(tissue_labels(small, fat=False), region_rules())


def span_of_tissues(tissues: LabelMap, rules: RegionRules) -> RegionSpan:
    """The span that coarse tissues show, see `estimate_span`."""
    vocabulary, grid = load_vocabulary(), tissues.grid
    pixel_cm2 = grid.spacing[0] * grid.spacing[1] / 100
    body = (tissues.array > 0).sum((0, 1)) * pixel_cm2
    if not body.any():
        raise InvalidVolumeError("nothing tells the body region of a CT that shows no body")
    lungs = (tissues.array == vocabulary.id("lungs")).sum((0, 1)) * pixel_cm2
    bones = (tissues.array == vocabulary.id("skeleton")).sum((0, 1)) * pixel_cm2
    shown = body > 0
    is_chest = (lungs > rules.lung_cm2) & (lungs > rules.lung_share * body)
    if is_chest.any():
        return _beside_lungs(np.flatnonzero(shown), np.flatnonzero(is_chest), grid.spacing[2], rules)
    bone_share = float(np.median(bones[shown] / body[shown]))
    if float(np.median(body[shown])) < rules.slender_cm2:
        region = BodyRegion.HEAD if bone_share > rules.head_bone_share else BodyRegion.LOWER
        return RegionSpan(region, region)
    if shown.sum() * grid.spacing[2] > rules.trunk_mm:
        return RegionSpan(BodyRegion.ABDOMEN, BodyRegion.LOWER)
    region = BodyRegion.LOWER if bone_share > rules.pelvis_bone_share else BodyRegion.ABDOMEN
    return RegionSpan(region, region)


def _beside_lungs(shown: np.ndarray, chest: np.ndarray, plane_mm: float, rules: RegionRules) -> RegionSpan:
    above = (int(shown.max()) - int(chest.max())) * plane_mm
    below = (int(chest.min()) - int(shown.min())) * plane_mm
    top = BodyRegion.HEAD if above > rules.neck_mm else BodyRegion.CHEST
    if below > rules.pelvis_mm:
        return RegionSpan(top, BodyRegion.LOWER)
    return RegionSpan(top, BodyRegion.ABDOMEN if below > rules.abdomen_mm else BodyRegion.CHEST)


@lru_cache(maxsize=1)
def region_rules() -> RegionRules:
    """The rules that ship with the package."""
    text = files("maisi.anatomy").joinpath("region_estimator.yaml").read_text(encoding="utf-8")
    return RegionRules.model_validate(yaml.safe_load(text))
