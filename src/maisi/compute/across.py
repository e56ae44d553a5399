"""Over what the work on many items is spread: processes here, jobs of an array, a cluster. Imports no torch."""

import re
from collections.abc import Sequence
from typing import TypeVar

from pydantic import Field, field_validator

from maisi.shapes import Frozen

Item = TypeVar("Item")


class Across(Frozen):
    """Processes of this machine, the part of an array job, and the Ray cluster that items are worked on by."""

    workers: int = Field(default=1, ge=1, description="Processes that work on the cases side by side.")
    shard: str | None = Field(default=None, description="Work on part I of N only, for array jobs: I/N, from 1.")
    ray: str | None = Field(
        default=None, description="Spread over a Ray cluster: its address, or local to start one here."
    )

    @field_validator("shard")
    @classmethod
    def _is_part(cls, said: str | None) -> str | None:
        matched = re.fullmatch(r"(\d+)/(\d+)", said or "1/1")
        if matched is None or not 1 <= int(matched[1]) <= int(matched[2]):
            raise ValueError(f"{said!r} is no part; accepted: I/N with I from 1 to N, such as 2/4")
        return said

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard, from 1; (1, 1) where all is to be done."""
        first, _, count = (self.shard or "1/1").partition("/")
        return int(first), int(count)

    def own(self, items: Sequence[Item]) -> list[Item]:
        """The items of this shard: every n-th, from the i-th."""
        first, count = self.part
        return list(items[first - 1 :: count])
