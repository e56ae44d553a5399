"""The rules of `variation.yaml`: how label maps are varied, and how far they must be from each other."""

from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import Field

from maisi.shapes import Frozen


class Band(Frozen):
    """Smooth displacements of one width; lengths in mm."""

    width_mm: float = Field(gt=0)
    rms_mm: float = Field(ge=0)


class VariationRules(Frozen):
    """`variation.yaml`; lengths in mm, angles in degrees."""

    scale_sd: float = Field(ge=0)
    axis_sd: float = Field(ge=0)
    turn_sd: float = Field(ge=0)
    shift_sd: float = Field(ge=0)
    bands: tuple[Band, ...]
    lattice_mm: float = Field(gt=0)
    steps: int = Field(ge=1)
    strengths: tuple[float, ...]
    compare_mm: float = Field(gt=0)
    least_voxels: int
    min_distance: float = Field(ge=0, le=1)
    compared: int = Field(ge=1)
    covered: float = Field(gt=0, le=1)
    region_share: float = Field(gt=0, le=1)


@lru_cache(maxsize=1)
def variation_rules() -> VariationRules:
    """The rules that ship with the package."""
    text = files("maisi.anatomy").joinpath("variation.yaml").read_text(encoding="utf-8")
    return VariationRules.model_validate(yaml.safe_load(text))
