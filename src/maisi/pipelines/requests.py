"""What a user can ask for, checked before any network is loaded."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from maisi.bundle.bundle import DEFAULT_BUNDLE
from maisi.pipelines.sizes import Bytes
from maisi.shapes import Frozen, Size3, Spacing3

DEFAULT_REGION = "chest"

Precision = Literal["float32", "bfloat16"]


def _known_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device; accepted: cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_known_device)]
"""Where networks compute: the processor, a GPU, or a numbered one."""


def _finite(spacing: Spacing3 | None) -> Spacing3 | None:
    if spacing is not None and not all(0 < s < 100 for s in spacing):
        raise ValueError(f"spacing {spacing} mm is not between 0 and 100 mm")
    return spacing


class ComputeRequest(Frozen):
    """With which bundle, in which precision and where networks compute, and the memory (bytes) that they stay within.

    Without a precision a command takes the faster one of the machine, and a bundle given from Python computes in
    float32. Beyond `memory`, tensors may go to files in the folder `scratch`, and from a GPU to `host_memory` bytes of
    the machine it is in.
    """

    bundle: str = DEFAULT_BUNDLE
    precision: Precision | None = None
    device: Device = "cpu"
    memory: Bytes | None = None
    scratch: Path | None = None
    host_memory: Bytes | None = None
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _host_has_a_gpu(self) -> "ComputeRequest":
        if self.host_memory is not None and self.device == "cpu":
            raise ValueError("host_memory is for what leaves a GPU; with device cpu raise memory instead")
        if self.host_memory is not None and self.memory is None:
            raise ValueError("host_memory needs memory: how much of the GPU's is used before tensors leave it")
        return self


class GenerateRequest(ComputeRequest):
    """A number of volumes with labels. Size (voxels) and spacing (mm) follow the region, or the labels given.

    Without labels the region is the chest; with labels it is what they show, unless named. How strongly the ControlNet
    steers is the bundle's to say, unless `controlnet_scale` does.
    """

    region: str | None = None
    size: Size3 | None = None
    spacing: Spacing3 | None = None
    labels: Path | None = None
    numbering: str | None = None
    enclose: bool = False
    modality: str = "ct"
    count: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=10, ge=1)
    solver: Literal["multistep", "euler", "ancestral"] = "multistep"
    controlnet_scale: float | None = Field(default=None, ge=0)
    format: Literal["nii.gz", "nii"] = "nii.gz"
    force: bool = False

    @field_validator("size")
    @classmethod
    def _positive(cls, size: Size3 | None) -> Size3 | None:
        if size is not None and min(size) < 1:
            raise ValueError(f"size {size} has an axis without voxels")
        return size

    _spacing_is_finite = field_validator("spacing")(_finite)

    @model_validator(mode="after")
    def _something_to_enclose(self) -> "GenerateRequest":
        if self.enclose and self.labels is None:
            raise ValueError("enclose draws a body around given labels; name them by --labels FILE, or leave it out")
        return self


class CodecRequest(ComputeRequest):
    """Encoding or decoding one file. With a spacing (mm) the volume is resampled first; `series` picks of a folder."""

    source: Path
    series: str | None = None
    spacing: Spacing3 | None = None

    _spacing_is_finite = field_validator("spacing")(_finite)
