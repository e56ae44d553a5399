"""What a user can ask of inpainting, checked before any file is opened. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from maisi.compute.compute import Compute
from maisi.pipelines.requests import DEFAULT_BUNDLE, BundleName
from maisi.shapes import Frozen, Spacing3
from maisi.space.reading import ReadOptions


class InpaintRequest(Frozen):
    """A tumour to put into a CT, or a lesion to take out of it; everything away from it stays as it is.

    Where the lesion is comes from one of `mask`, `at` with `diameter`, or `random`; with `remove` from `mask`, or from
    the lesions that `labels` name. With `manifest` the same is done to each of its cases, with the case's own labels.
    """

    source: Path | None = Field(default=None, description=".nii, .nii.gz, .nrrd, .mha or a DICOM folder.")
    manifest: Path | None = Field(default=None, description="All cases of this manifest, with their own labels.")
    tumor: str | None = Field(default=None, description='Such as "hepatic tumor"; docs/guides/tumours.md has a table.')
    remove: bool = Field(default=False, description="Heal the lesion instead.")
    mask: Path | None = Field(default=None, description="Where the lesion is, on the grid of the CT: not 0.")
    at: Spacing3 | None = Field(default=None, description="Centre of the lesion in the world, mm RAS; with --diameter.")
    diameter: float | None = Field(default=None, gt=0, description="Of a sphere of the lesion's volume, mm.")
    random: int | None = Field(default=None, ge=1, description="So many lesions at places drawn from the seed.")
    within: str | None = Field(
        default=None,
        description="Structure or group that --random draws places in.",
        json_schema_extra={"shown_default": "the tumour's host"},
    )
    labels: Path | None = Field(
        default=None,
        description="Label map of the CT, may be partial.",
        json_schema_extra={"shown_default": "coarse tissues by HU"},
    )
    contrast: Literal["network", "reference"] | None = Field(
        default=None,
        description="Whose HU a new lesion has: network, or reference where the network's are off the table's.",
        json_schema_extra={"shown_default": "network where the bundle claims the tumour"},
    )
    bundle: BundleName = DEFAULT_BUNDLE
    seed: int = Field(default=0, ge=0, description="Same seed, same lesion.")
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
    force: bool = Field(default=False, description="Go on with a lesion that does not lie in its host.")
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()

    @field_validator("at")
    @classmethod
    def _finite(cls, at: Spacing3 | None) -> Spacing3 | None:
        if at is not None and not all(abs(x) < 1e5 for x in at):
            raise ValueError(f"{at} is no place in mm")
        return at

    @model_validator(mode="after")
    def _one_place(self) -> "InpaintRequest":
        if self.source is not None and self.manifest is not None:
            raise ValueError(f"either {self.source} or --manifest {self.manifest}")
        if self.manifest is not None and (self.mask is not None or self.at is not None or self.labels is not None):
            raise ValueError("each case of a manifest has labels and places of its own; with it --random or --remove")
        if self.manifest is not None and self.reading != ReadOptions(modality=self.reading.modality):
            raise ValueError(
                "how a file is to be read is said of a single CT; those of a manifest are read as they are"
            )
        if self.reading.hu_window is not None or self.reading.modality != "ct":
            raise ValueError(
                "a lesion is written in HU; accepted: a CT in HU (hu_window and MR are for other commands)"
            )
        return self._removing() if self.remove else self._adding()

    def _removing(self) -> "InpaintRequest":
        drawn = [f"--{name}" for name in ("at", "diameter", "random", "within") if getattr(self, name) is not None]
        if drawn:
            raise ValueError(f"{drawn[0]} is for a new lesion; --remove takes --mask FILE or --labels FILE")
        if self.mask is None and self.labels is None and self.manifest is None:
            raise ValueError("--remove needs to know the lesion: --mask FILE, or --labels FILE that names it")
        return self

    def _adding(self) -> "InpaintRequest":
        if self.tumor is None:
            raise ValueError('--tumor NAME says what to put in, such as --tumor "hepatic tumor"; --remove takes out')
        places = [f"--{name}" for name in ("mask", "at", "random") if getattr(self, name) is not None]
        if len(places) != 1:
            raise ValueError(
                f"a lesion has one place: --mask FILE, --at X Y Z with --diameter, or --random N; got "
                f"{' and '.join(places) or 'none'}"
            )
        if self.at is not None and self.diameter is None:
            raise ValueError("--at says where; --diameter MM says how large")
        if self.mask is not None and self.diameter is not None:
            raise ValueError("--mask says how large the lesion is; leave --diameter out")
        if self.within is not None and self.random is None:
            raise ValueError("--within is for --random")
        return self
