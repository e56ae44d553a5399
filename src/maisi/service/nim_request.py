"""The request of NVIDIA's MAISI service (NIM 1.0.1), and what it says in our words. Imports no torch.

Fields and ranges are those of docs.nvidia.com/nim/medical/maisi, API reference.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from maisi.anatomy.regions import BodyRegion
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

Region = Literal["head", "chest", "thorax", "abdomen", "pelvis", "lower"]
Ending = Literal[".nrrd", ".nii", ".nii.gz", ".dcm"]
Organ = Literal[
    "liver", "gallbladder", "stomach", "pancreas", "colon",
    "lung tumor", "bone lesion", "hepatic tumor", "colon cancer primaries", "pancreatic tumor",
]  # fmt: skip
Plane = Literal[128, 256, 384, 512]
Depth = Literal[128, 256, 384, 512, 640, 768]
Millimetres = Annotated[float, Field(ge=0.5, le=5.0)]
REMOVED = -1.0
DEFAULT_SIZE: tuple[Plane, Plane, Depth] = (256, 256, 256)
DEFAULT_SPACING = (1.5, 1.5, 1.5)


def _size(size: float) -> float:
    if size != REMOVED and not 0 <= size <= 1:
        raise ValueError(f"size {size:g} is not accepted; accepted: 0 to 1, or -1 to remove")
    return size


class NimRequest(Frozen):
    """`POST /v1/maisi/run`: a number of CTs with masks, of body regions, with organs of a size."""

    num_output_samples: int = Field(ge=1, description="Number of images.")
    body_region: tuple[Region, ...] = Field(description="Body regions to show.")
    anatomy_list: tuple[str, ...] = Field(default=(), description="Structures that the images are to show.")
    output_size: tuple[Plane, Plane, Depth] = Field(default=DEFAULT_SIZE, description="Voxels.")
    spacing: tuple[Millimetres, Millimetres, Millimetres] = Field(
        default=DEFAULT_SPACING, description="Voxel size, mm."
    )
    controllable_anatomy_size: tuple[tuple[Organ, float], ...] = Field(
        default=(), max_length=10, description="Organs with a size from 0 to 1, or -1 to remove."
    )
    pre_signed_url: str | None = Field(
        default=None, max_length=4000, description="Where to send the zip by PUT instead."
    )
    local_working_dir: str | None = Field(
        default=None, max_length=400, description="Folder below that of --outputs to write to instead."
    )
    image_output_ext: Ending = Field(default=".nii.gz", description="Ending of the images.")
    label_output_ext: Ending = Field(default=".nii.gz", description="Ending of the masks.")

    @field_validator("anatomy_list")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        vocabulary = load_vocabulary()
        for name in names:
            if not vocabulary.knows(name):
                close = get_close_matches(name.lower(), vocabulary.names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "see GET /v1/maisi/info"
                raise ValueError(f"unknown anatomy {name!r}; {hint}")
        return names

    @field_validator("controllable_anatomy_size")
    @classmethod
    def _sizes(cls, organs: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        for _, size in organs:
            _size(size)
        return organs

    @model_validator(mode="after")
    def _fits_together(self) -> "NimRequest":
        if self.output_size[0] != self.output_size[1]:
            raise ValueError(f"output_size {list(self.output_size)} is not accepted; accepted: x equal to y")
        if self.label_output_ext == ".dcm" != self.image_output_ext:
            raise ValueError("masks in .dcm refer to the slices of their images; accepted: image_output_ext .dcm too")
        return self


def generate_settings(asked: NimRequest, limits: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The settings of `maisi generate` for what NVIDIA's service would make of a request, within a bundle's limits.

    The field of view is the one asked for; where the bundle draws fewer or larger voxels, its samples are resampled to
    the asked grid afterwards. Raises `InvalidRequestError` where the bundle draws no such field of view.
    """
    size, spacing = grid_within(asked.output_size, asked.spacing, limits)
    return {
        "region": region_of(asked.body_region),
        "count": asked.num_output_samples,
        "seed": seed,
        "size": list(size),
        "spacing": list(spacing),
        "anatomy": list(_wishes(asked)),
    }


def region_of(regions: Iterable[str]) -> str | None:
    """The one region that is asked for, by whatever names; None for an empty list, which leaves it open."""
    found = list(dict.fromkeys(BodyRegion.named(region) for region in regions))
    if len(found) > 1:
        names = ", ".join(each.name.lower() for each in found)
        raise InvalidRequestError(f"body_region: {names} in one image is not offered; accepted: one region")
    return found[0].name.lower() if found else None


def _wishes(asked: NimRequest) -> Iterable[str]:
    vocabulary = load_vocabulary()
    sized = {vocabulary.find(name): size for name, size in asked.controllable_anatomy_size}
    for id, size in sized.items():
        yield f"{vocabulary.name(id)}={'none' if size == REMOVED else f'{size:g}'}"
    for id in dict.fromkeys(vocabulary.find(name) for name in asked.anatomy_list):
        if id not in sized:
            yield f"{vocabulary.name(id)}=any"


def grid_within(
    size: tuple[int, int, int], spacing: tuple[float, float, float], limits: Mapping[str, Any]
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Voxels and their size (mm) that cover the same field of view within the limits of a bundle.

    Voxels are as near to the asked ones as the bundle draws them; each axis is a multiple of 16, so that they may
    differ a little.
    """
    least, most = limits.get("min_spacing_mm", (0.5,) * 3), limits.get("max_size", (512, 512, 768))
    found_size, found_spacing = [], []
    for axis in range(3):
        fov = size[axis] * spacing[axis]
        step = max(spacing[axis], float(least[axis]), fov / int(most[axis]))
        voxels = min(-(-round(fov / step) // 16) * 16, int(most[axis]) // 16 * 16)
        found_size.append(max(16, voxels))
        found_spacing.append(round(fov / found_size[axis], 6))
    return tuple(found_size), tuple(found_spacing)  # type: ignore[return-value]
