"""The record of a run (`run.json`): what made it, from what, and how long it took."""

import json
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from maisi.bundle.bundle import Bundle
from maisi.bundle.contents import CHECKSUMS
from maisi.errors import InvalidRequestError
from maisi.runs.meter import Stage
from maisi.shapes import Frozen
from maisi.space.reading import FileReport
from maisi.storage.provenance import BundleIdentity, Provenance
from maisi.storage.sums import sha256, sha256_of_tree

_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "isal", "safetensors", "pillow", "pydantic")


class RunRecord(Frozen):
    """What `run.json` says; sums are SHA-256."""

    command: str
    maisi: str
    started: datetime
    seed: int | None
    threads: int | None = None
    ranks: int = 1
    bundle: BundleIdentity | None = None
    versions: dict[str, str]
    platform: dict[str, str]
    inputs: dict[str, str]
    files: tuple[FileReport, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()  # what was made but failed its check, or could not be made
    kept: tuple[str, ...] = ()  # what failed its check and lies among the others all the same
    num_made: int = 0  # samples, without those that an earlier part of the run made
    outputs: dict[str, str]
    stages: dict[str, Stage]
    seconds: float
    peak_bytes: int


def read_record(path: Path) -> RunRecord:
    """The record in a `run.json`; raises `InvalidRequestError` where it is missing or damaged."""
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no {path.name} in {path.parent}: the run is not complete, or was moved") from error
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


def input_sums(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of input files; of a folder, the sum of the sums of its files."""
    return {str(path): sha256_of_tree(path) for path in paths}


def known_sums(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of inputs, summed once as long as they are not written again: the many samples of a run share theirs."""
    return {str(path): _sum(path, path.stat().st_mtime_ns) for path in paths}


@lru_cache(maxsize=64)
def _sum(path: Path, written_ns: int) -> str:
    return sha256_of_tree(path)


# Repeating ------------------------------------------------------------------------------------------------------------


def check_same_inputs(record: RunRecord | Provenance, inputs: dict[str, str], bundle: BundleIdentity | None) -> None:
    """Nothing, or an `InvalidRequestError`: a run can be repeated only on the bundle and the files that it had."""
    was, found = (None if each is None else each.sha256 for each in (record.bundle, bundle))
    if was != found:
        name = "the bundle" if bundle is None else f"bundle {bundle.name!r}"
        raise InvalidRequestError(f"{name} is not the one of the run: its sum is {found}, the run had {was}")
    for path, total in inputs.items():
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
