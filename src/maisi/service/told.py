"""What answers hold, as OpenAPI tells it."""

from typing import Any

from maisi.service.job import Job
from maisi.shapes import Frozen


class JobsTold(Frozen):
    """A page of jobs, the newest first."""

    jobs: tuple[Job, ...]


class Artifact(Frozen):
    """One file of a result."""

    name: str
    bytes: int
    media_type: str


class Artifacts(Frozen):
    """The files of a result that are in place."""

    artifacts: tuple[Artifact, ...]


class BundleTold(Frozen):
    """A bundle that requests may name: what it was trained for."""

    name: str
    default: bool
    version: str
    description: str
    networks: tuple[str, ...]
    limits: dict[str, Any]
    regions: tuple[str, ...]
    tumours: tuple[str, ...]
    licence: str
    draws_labels: bool


class BundlesTold(Frozen):
    """The bundles of a service, the default first."""

    models: tuple[BundleTold, ...]


class StructureTold(Frozen):
    """A structure that label maps may hold; `sized` where a size from 0 to 1 can be asked of it."""

    id: int
    name: str
    names: tuple[str, ...]
    group: str
    groups: tuple[str, ...]
    colour: str
    tumour: bool
    host: tuple[str, ...]
    region: str
    sized: bool


class StructuresTold(Frozen):
    """The vocabulary."""

    labels: tuple[StructureTold, ...]


class PlanTold(Frozen):
    """What a job would take; `problems` are why it would be refused, and then the numbers are missing."""

    seconds: float | None = None
    bytes: int | None = None
    how: str = ""
    problems: tuple[str, ...] = ()


class Health(Frozen):
    """Whether a service lives, or is ready."""

    status: str
