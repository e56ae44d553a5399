"""What can be asked of label maps: prepared, kept in a library, drawn from it. Imports nothing heavy."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from maisi.pipelines.requests import Spacing, Voxels, Wishes
from maisi.shapes import Frozen
from maisi.space.reading import ReadOptions


class PreparingLabels(Frozen):
    """How label maps of anywhere become ours: read, given a body, resampled."""

    enclose: bool = Field(default=False, description="Draw a body around maps that have none.")
    body: bool = Field(default=False, description="Take the body from the CT that a manifest names beside its labels.")
    spacing: Spacing = Field(default=None, description="Voxel size in mm; the maps are resampled by vote.")
    reading: ReadOptions = ReadOptions()


class PrepareLabelsRequest(PreparingLabels):
    """Label maps of any vocabulary that the vocabulary knows, made ours."""

    sources: tuple[Path, ...] = Field(default=(), description="Label maps, folders of them, manifests.")


class LibraryAddRequest(PrepareLabelsRequest):
    """Label maps that enter a library; patient, licence, source and split are those that a manifest says."""

    licence: str = Field(default="", description="Licence of the maps, where no manifest says it.")
    source: str = Field(default="", description="Where they are from, where no manifest says it.")
    split: Literal["training", "validation", "testing"] = Field(
        default="training", description="What they are for, where no manifest says it; training is drawn from."
    )


class LibraryDrawRequest(Frozen):
    """Label maps drawn from a library, each bent into another person and changed into what is asked for."""

    library: Path = Field(description="Folder of the library.")
    region: str | None = Field(default=None, description="head, chest, abdomen, lower.")
    size: Voxels = Field(default=None, description="Voxels.", json_schema_extra={"shown_default": "the region's"})
    spacing: Spacing = Field(default=None, description="Voxel size in mm.")
    anatomy: Wishes = Field(default=(), description="Structures asked for: liver=0.6 gallbladder=none.")
    min_distance: float | None = Field(
        default=None, ge=0, le=1, description="Least distance to every map of the library, 0 to 1."
    )
    enclose: bool = Field(default=False, description="Draw a body around maps that have none.")
    count: int = Field(default=1, ge=1, description="Label maps.")
    seed: int = Field(default=0, ge=0, description="Same seed, same maps.")
