"""Where networks compute, in which numbers and within what; every request contains it. Imports no torch."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ByteSize, Field, model_validator

from maisi.shapes import Frozen

Bytes = Annotated[ByteSize, Field(ge=1)]
"""A setting in bytes that may be written as 8GB (10^9), 2GiB (2^30) or 500 MB."""

Precision = Literal["float32", "bfloat16", "float16"]


def format_bytes(num_bytes: float) -> str:
    """An amount of memory to be read by people, in powers of 1000: 1.2 GB."""
    return ByteSize(num_bytes).human_readable(decimal=True, separator=" ")


def _known_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device; accepted: cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_known_device)]
"""Where networks compute: the processor, a GPU, or a numbered one."""


class Compute(Frozen):
    """Device, number format, memory (bytes), scratch folder, threads and ranks of the networks' work.

    What is left open is for the machine to say, see `fill_defaults`. Beyond `memory`, tensors may go to files in the
    folder `scratch`, and from a GPU to `host_memory` bytes of the machine it is in. `ranks` are the processes that make
    each volume together.
    """

    device: Device = Field(default="cpu", description="Where networks compute: cpu, cuda or cuda:N.")
    precision: Precision | None = Field(
        default=None,
        description="float32, bfloat16, or on a GPU float16.",
        json_schema_extra={"shown_default": "the faster one here"},
    )
    memory: Bytes | None = Field(default=None, description="Stay within this much memory, such as 8GB.")
    scratch: Path | None = Field(
        default=None, description="Folder where --memory may keep tensors on disk; emptied afterwards."
    )
    host_memory: Bytes | None = Field(
        default=None, description="On a GPU: how much of the machine's own memory --memory may use besides."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads to compute with.",
        json_schema_extra={"shown_default": "one a core that is free to use"},
    )
    ranks: int | None = Field(
        default=None,
        ge=1,
        description="Processes that make each volume together, started by torchrun.",
        json_schema_extra={"shown_default": "as many as were started"},
    )

    @model_validator(mode="after")
    def _possible(self) -> "Compute":
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError("float16 is for a GPU; on the CPU accepted: float32, bfloat16")
        if self.host_memory is not None and self.device == "cpu":
            raise ValueError("host_memory is for what leaves a GPU; with device cpu raise memory instead")
        if self.host_memory is not None and self.memory is None:
            raise ValueError("host_memory needs memory: how much of the GPU's is used before tensors leave it")
        return self
