"""The folder of a run: files that appear whole, settings that repeat it (`run.yaml`) and its record (`run.json`)."""

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maisi.bundle.bundle import Bundle
from maisi.bundle.files import CHECKSUMS
from maisi.errors import InvalidRequestError, StorageError
from maisi.pipelines.meter import Stage, StageMeter
from maisi.pipelines.settings import read_settings, write_settings
from maisi.shapes import Frozen
from maisi.storage.owners import is_abandoned, owner_mark, remove_abandoned
from maisi.storage.sums import sha256, sha256_of_tree

RUN_SETTINGS, RUN_RECORD = "run.yaml", "run.json"
COMMAND = "command"

_PARTIAL = ".partial-"
_OURS = re.compile(r"^(run\.(yaml|json)|metrics\.json|(sample_\d{3,}|reconstruction)(_[a-z]+)?\.(nii|nii\.gz|png))$")
_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "isal", "safetensors", "pillow", "pydantic")


class BundleIdentity(Frozen):
    """Which bundle a run used; the sum is that of its `checksums.json`, which holds the sums of all its files."""

    name: str
    version: str
    sha256: str | None


class RunRecord(Frozen):
    """What `run.json` says; sums are SHA-256."""

    command: str
    maisi: str
    started: datetime
    seed: int | None
    threads: int
    ranks: int = 1
    bundle: BundleIdentity
    versions: dict[str, str]
    platform: dict[str, str]
    inputs: dict[str, str]
    outputs: dict[str, str]
    stages: dict[str, Stage]
    seconds: float
    peak_bytes: int


# The folder -----------------------------------------------------------------------------------------------------------


class RunFolder:
    """A folder that files enter whole: they are written under `partial` and moved by `publish`."""

    def __init__(self, path: Path, partial: Path) -> None:
        self.path, self.partial = path, partial
        self.published: list[Path] = []

    def publish(self) -> list[Path]:
        """Move all that was written into the folder, and give where it is now; an earlier run's files go first."""
        staged = sorted(self.partial.iterdir())
        with _storage_errors(self.path):
            if not self.published:
                _remove_earlier(self.path)
            for file in staged:
                os.replace(file, self.path / file.name)
        moved = [self.path / file.name for file in staged]
        self.published += moved
        return moved


def check_free(path: Path, overwrite: bool = False) -> None:
    """Nothing, or the refusal of a place for a run's files that is no folder or holds files."""
    with _storage_errors(path):
        if path.exists() and not path.is_dir():
            raise InvalidRequestError(f"{path} is a file; accepted: a new or empty folder")
        entries = list(path.iterdir()) if path.exists() else []
    found = [entry.name for entry in entries if not is_abandoned(entry, _PARTIAL)]
    if found and not overwrite:
        shown = ", ".join(sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
        raise InvalidRequestError(
            f"{path} is not empty (it holds {shown}); accepted: a new or empty folder, or --overwrite"
        )


@contextmanager
def open_run(path: Path, overwrite: bool = False) -> Iterator[RunFolder]:
    """A folder to fill. Ended by an error it keeps what was published; with nothing published it is as it was before.

    A killed run leaves at most a hidden folder `.partial-...`, which the next run removes. With `overwrite`, files of
    an earlier run give way to the first that are published; files that maisi did not write stay.
    """
    check_free(path, overwrite)
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    partial = path / f"{_PARTIAL}{owner_mark()}"
    run = RunFolder(path, partial)
    try:
        with _storage_errors(path):
            partial.mkdir(parents=True)
            remove_abandoned(path, _PARTIAL)
        yield run
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not run.published:
            _remove_empty(created)


def _remove_earlier(path: Path) -> None:
    for name in (RUN_RECORD, *(entry.name for entry in path.iterdir() if _OURS.match(entry.name))):
        (path / name).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write to {path}: {error.strerror or error}") from error


# The record -----------------------------------------------------------------------------------------------------------


def write_run_settings(run: RunFolder, command: str, request: BaseModel) -> None:
    """`run.yaml`: the command and every setting of its request; `maisi reproduce` and `-c` take it."""
    with _storage_errors(run.path):
        write_settings(run.partial / RUN_SETTINGS, {COMMAND: command, **request.model_dump(mode="json")})


def read_run_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The command and the settings of a `run.yaml`; raises `InvalidConfigError` or `InvalidRequestError`."""
    settings = read_settings(path)
    command = settings.pop(COMMAND, None)
    if not isinstance(command, str):
        raise InvalidRequestError(f"{path} does not say which command it repeats; accepted: a run.yaml of a maisi run")
    return command, settings


def finish_run(
    run: RunFolder,
    command: str,
    request: BaseModel,
    bundle: Bundle,
    started: datetime,
    meter: StageMeter,
    num_ranks: int = 1,
) -> RunRecord:
    """Write `run.json`, the last file of a run: its presence says that the run is complete."""
    stages = meter.stages
    settings = request.model_dump()
    record = RunRecord(
        command=command,
        maisi=installed_version("maisi"),
        started=started,
        seed=settings.get("seed"),
        threads=settings["threads"],
        ranks=num_ranks,
        bundle=identity(bundle),
        versions=versions(),
        platform=machine(),
        inputs=input_sums(settings),
        outputs={file.name: sha256(file) for file in sorted(run.published)},
        stages=stages,
        seconds=round(sum(stage.seconds for stage in stages.values()), 3),
        peak_bytes=max((stage.peak_bytes for stage in stages.values()), default=0),
    )
    with _storage_errors(run.path):
        (run.partial / RUN_RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    run.publish()
    return record


def read_record(path: Path) -> RunRecord:
    """The record in a `run.json`; raises `InvalidRequestError` where it is missing or damaged."""
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no {RUN_RECORD} in {path.parent}: the run is not complete, or was moved") from error
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidRequestError(f"{path} is no record of a maisi run: {str(error).splitlines()[0]}") from error


def now() -> datetime:
    """The time that a run says it started at."""
    return datetime.now(UTC).replace(microsecond=0)


def identity(bundle: Bundle) -> BundleIdentity:
    """Which bundle this is; a bundle that is not on disk has no sum."""
    total = sha256(bundle.path / CHECKSUMS) if bundle.path is not None else None
    return BundleIdentity(name=bundle.name, version=bundle.info.version, sha256=total)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{package: installed_version(package) for package in _PACKAGES}}


def installed_version(package: str) -> str:
    """The version that a package was installed as; "not installed" where it runs from a folder of sources."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """What of the machine the last bits of a result may depend on."""
    import torch

    from maisi.splitting.cpu import compiled

    instructions = compiled.instruction_set()
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": processor(),
        "capability": str(torch.backends.cpu.get_cpu_capability()),
        "convolutions": f"compiled for {instructions}" if instructions else "torch",
    }


def processor() -> str:
    """The name of the processor, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def input_sums(settings: Mapping[str, Any]) -> dict[str, str]:
    """Sums of the files that a request names; of a folder, the sum of the sums of its files."""
    return {str(path): sha256_of_tree(path) for path in settings.values() if isinstance(path, Path)}


# Repeating ------------------------------------------------------------------------------------------------------------


def check_same_inputs(record: RunRecord, settings: Mapping[str, Any], bundle: Bundle) -> None:
    """Nothing, or an `InvalidRequestError`: a run can be repeated only on the bundle and the files that it had."""
    if identity(bundle).sha256 != record.bundle.sha256:
        raise InvalidRequestError(
            f"bundle {bundle.name!r} is not the one of the run: its sum is {identity(bundle).sha256}, "
            f"the run had {record.bundle.sha256}"
        )
    for path, total in input_sums(settings).items():
        if record.inputs.get(path) != total:
            raise InvalidRequestError(f"{path} is not the file of the run: its SHA-256 is {total}")


def differences(record: RunRecord, again: RunRecord) -> list[str]:
    """Names of the outputs that are not bit for bit the same, or in one of the two runs only."""
    names = sorted(record.outputs.keys() | again.outputs.keys())
    return [name for name in names if record.outputs.get(name) != again.outputs.get(name)]


def changed_circumstances(record: RunRecord, again: RunRecord) -> list[str]:
    """What else was not the same, one line each: the likely reasons of differences."""
    before, after = circumstances(record), circumstances(again)
    return [f"{key} was {before.get(key)}, is {after.get(key)}" for key in after if before.get(key) != after.get(key)]


def circumstances(record: RunRecord) -> dict[str, str]:
    """All that the last bits of a run's results may depend on besides its request."""
    shared = {"threads": str(record.threads), "ranks": str(record.ranks)}
    return {"maisi": record.maisi, **record.versions, **record.platform, **shared}
