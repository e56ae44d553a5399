"""What every command that writes is: a name, a request, a check, and work that fills a place with files.

A task is names and functions of modules, no closures: it can be sent to another process, and a request is plain data.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from maisi.bundle.bundle import Bundle
from maisi.errors import InvalidRequestError
from maisi.runs.meter import StageMeter
from maisi.space.reading import FileReport
from maisi.splitting.ranks import Ranks
from maisi.storage.provenance import Provenance

Request = TypeVar("Request", bound=BaseModel)


class Output(Enum):
    """How the files of a task come to where they belong."""

    PIECES = "a folder that finished pieces enter one after the other, and that a later run goes on with"
    FILE = "one file, with its records beside it"
    WHOLE = "a folder that appears as a whole"
    STATE = "a folder with a state of its own, in which a later run goes on"
    SHARED = "a folder that runs of the same settings add to, one after the other or side by side"


@dataclass(frozen=True)
class Checked(Generic[Request]):
    """A request that can be carried out, with all that it left open filled in, and what checking it has found."""

    request: Request
    subject: Any = None  # what the work needs besides the request
    bundle: Bundle | None = None
    files: tuple[FileReport, ...] = ()


@dataclass(frozen=True)
class Watch:
    """Whom a run tells: of stages (name, steps done, steps in all), and of files once they are in place."""

    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None
    on_files: Callable[[list[Path]], None] = lambda files: None


@dataclass
class Run:
    """A run while it is carried out: where to write, what is there already, and whom to tell."""

    partial: Path  # files are written here, and are moved by `publish`
    folder: Path  # where they are moved to
    name: str  # of the one file of a task with `Output.FILE`
    existing: frozenset[str]  # names of files of an earlier part of this run, such as failed/sample_000_ct.nii.gz
    writes: bool  # False on ranks besides the first
    ranks: Ranks | None
    watch: Watch
    meter: StageMeter
    publish_files: Callable[[], list[Path]]
    provenance: Provenance | None = None  # for the files that have a place for it
    outputs: set[Path] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # what came out, but is not good, or did not come out
    kept: list[str] = field(default_factory=list)  # what is not good and lies among what is
    num_made: int = 0  # samples of this run, without those of earlier parts of it

    def made(self, name: str) -> Provenance | None:
        """What a file of this name says of its making."""
        return None if self.provenance is None else self.provenance.of(name)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is; its end is measured."""
        if done == total:
            self.meter.end(stage)
        self.watch.on_stage(stage, done, total)

    def has(self, names: Iterable[str]) -> bool:
        """Whether an earlier part of this run has made these files; then they are outputs of this run too."""
        wanted = set(names)
        if not wanted <= self.existing:
            return False
        self.outputs |= {file for name in wanted for file in _files_of(self.folder / name)}
        return True

    def publish(self) -> None:
        """Move all that was written to where it belongs."""
        moved = self.publish_files()
        files = [file for entry in moved for file in _files_of(entry)]
        self.outputs.update(files)
        self.meter.end("write")
        self.watch.on_files(files)

    def publish_beside(self) -> None:
        """The same from another thread: whoever runs counts outputs and time."""
        self.watch.on_files([file for entry in self.publish_files() for file in _files_of(entry)])


def _files_of(entry: Path) -> list[Path]:
    """A file, or the files of a folder."""
    return [entry] if entry.is_file() else [file for file in sorted(entry.rglob("*")) if file.is_file()]


def no_inputs(request: Any) -> tuple[Path, ...]:
    """The inputs of a request that names no file."""
    return ()


def anywhere(request: Any, out: Path) -> None:
    """Nothing: a request whose files may lie wherever there is room."""


def check_not_within(out: Path, paths: Iterable[Path | None]) -> None:
    """Nothing, or the refusal of a place that would be replaced with what is read in it."""
    for path in paths:
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise InvalidRequestError(f"{out} would be replaced, and {path} is read; accepted: another place")


def no_shard(request: Any) -> str | None:
    """No part of an array job."""
    return None


def no_state(request: Any) -> tuple[str, ...]:
    """Nothing that a later run would go on from."""
    return ()


def no_cluster(request: Any) -> tuple[None, int]:
    """Nothing of a Ray cluster."""
    return None, 1


@dataclass(frozen=True)
class Task(Generic[Request]):
    """A command that writes. `check` raises for all that can be known to be impossible before anything is written."""

    name: str
    request: type[Request]
    check: Callable[[Request], Checked[Request]]
    work: Callable[[Checked[Request], Run], None]
    inputs: Callable[[Request], tuple[Path, ...]] = no_inputs
    output: Output = Output.PIECES
    suffixes: tuple[str, ...] = ()  # accepted endings of the one file of `Output.FILE`
    on_ranks: bool = False  # whether several processes may carry it out together
    shard: Callable[[Request], str | None] = no_shard  # the part of `Output.SHARED` that a request is for, as 2/4
    cluster: Callable[[Request], tuple[str | None, int]] = no_cluster  # address of the Ray cluster, and cores an item
    check_place: Callable[[Request, Path], None] = anywhere  # raises where the files may not lie there
    state: Callable[[Request], tuple[str, ...]] = no_state  # what goes where `--overwrite` begins anew
    free: tuple[str, ...] = ()  # settings in which runs that fill one `Output.SHARED` may differ, besides the usual
