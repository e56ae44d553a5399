"""What a user can ask of zoom refinement, checked before any file is opened. Imports no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from maisi.compute.compute import Compute
from maisi.pipelines.requests import DEFAULT_BUNDLE, BundleName, Spacing
from maisi.shapes import Frozen
from maisi.space.reading import ReadOptions


class RefineRequest(Frozen):
    """Structures of a CT (generated, or any other with labels) to be drawn again at finer spacing."""

    source: Path = Field(description=".nii, .nii.gz, .nrrd, .mha or a DICOM folder.")
    labels: Path | None = Field(default=None, description="The label map that belongs to it.")
    structures: tuple[str, ...] = Field(default=(), description="Structures or groups, such as gallbladder,pancreas.")
    zoom: Spacing = Field(
        default=None,
        description="Voxel size in mm that they are drawn at.",
        json_schema_extra={"shown_default": "the bundle's finest"},
    )
    spacing: Spacing = Field(
        default=None, description="Voxel size in mm of the result.", json_schema_extra={"shown_default": "the CT's"}
    )
    strength: float = Field(
        default=0.5, gt=0, le=1, description="1 draws from noise; less keeps more of what is there."
    )
    bundle: BundleName = DEFAULT_BUNDLE
    seed: int = Field(default=0, ge=0, description="Same seed, same result.")
    steps: int = Field(default=10, ge=1, description="Steps of the sampler.")
    solver: Literal["multistep", "euler", "ancestral"] = Field(
        default="multistep", description="multistep, euler or ancestral."
    )
    controlnet_scale: float | None = Field(
        default=None,
        ge=0,
        description="How strongly labels steer.",
        json_schema_extra={"shown_default": "the bundle's"},
    )
    force: bool = Field(default=False, description="Go on beyond what the bundle was trained for.")
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()

    @field_validator("structures", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """Names in one text, with commas between, or one after the other."""
        names = [given] if isinstance(given, str) else given
        return [part.strip() for name in names for part in str(name).split(",") if part.strip()]
