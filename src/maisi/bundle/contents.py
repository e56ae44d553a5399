"""Files of a bundle: weights in safetensors, checksums, strict YAML."""

import json
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Size, Tensor

from maisi.errors import InvalidBundleError
from maisi.storage.sums import sha256

CHECKSUMS = "checksums.json"

Model = TypeVar("Model", bound=BaseModel)


# --- checksums ---


def write_checksums(folder: Path) -> None:
    """Write the sum of every file of a finished folder into its `checksums.json`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": sums}, indent=2) + "\n", encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """The sums that a folder's files should have, by relative path; every listed file is there.

    Raises `InvalidBundleError`.
    """
    path = folder / CHECKSUMS
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        listed = {str(name): str(value) for name, value in sums.items()}
    except FileNotFoundError:
        raise InvalidBundleError(f"{folder} has no {CHECKSUMS}; without it the bundle cannot be trusted") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidBundleError(f'{path} is damaged; expected {{"sha256": {{file: sum}}}}') from error
    outside = [name for name in listed if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise InvalidBundleError(f"{path} lists {outside[0]!r}, which is not a file of the bundle")
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise InvalidBundleError(f"{folder} is incomplete; missing: {', '.join(missing)}")
    return listed


def check_sum(folder: Path, name: str, checksums: Mapping[str, str]) -> Path:
    """The path of a file whose sum is the listed one; raises `InvalidBundleError` naming the file and both sums."""
    path = folder / name
    if name not in checksums:
        raise InvalidBundleError(f"{path} is not listed in {CHECKSUMS}; it was added after the bundle was made")
    actual = sha256(path)
    if actual != checksums[name]:
        raise InvalidBundleError(
            f"{path} was altered or damaged: its SHA-256 is {actual}, {CHECKSUMS} says {checksums[name]}"
        )
    return path


# --- settings ---


def write_yaml(path: Path, model: BaseModel) -> None:
    """Write a configuration, every field of it, in the order of its class."""
    text = yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, default_flow_style=None, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def read_yaml(path: Path, kind: type[Model]) -> Model:
    """The configuration in a file; raises `InvalidBundleError` naming each wrong setting."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return kind.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidBundleError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        problems = "; ".join(_told(problem, kind) for problem in error.errors())
        raise InvalidBundleError(f"{path}: {problems}") from error


def _told(problem: Mapping[str, Any], kind: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}, got {problem['input']!r}" if where else str(problem["msg"])
    close = get_close_matches(str(problem["loc"][-1]), kind.model_fields, n=1)
    return f"unknown setting {where!r}" + (f"; did you mean {close[0]!r}?" if close else "")


# --- weights ---


def write_weights(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write tensors to a safetensors file, the floating ones in `dtype`."""
    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    save_file(stored, path, metadata={"format": "pt"})


def read_weights(
    path: Path, dtype: torch.dtype, device: str | torch.device = "cpu", in_float32: Collection[str] = ()
) -> dict[str, Tensor]:
    """Tensors of a safetensors file, the floating ones as `dtype`, or float32 those of the names given.

    Raises `InvalidBundleError` where the file is damaged.
    """
    try:
        state = load_file(path, device=str(device))
    except SafetensorError as error:
        raise InvalidBundleError(f"{path} is no readable safetensors file: {error}") from error
    formats = {name: torch.float32 if name in in_float32 else dtype for name in state}
    return {name: tensor.to(formats[name]) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def stored_dtypes(path: Path) -> list[str]:
    """Names of the number formats in a safetensors file, such as F32 or BF16, without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return sorted({file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InvalidBundleError(f"{path} is no readable safetensors file: {error}") from error


def misfit(got: Mapping[str, Size], expected: Mapping[str, Size]) -> str:
    """What is wrong with the names and shapes of a network's tensors, a few of each sort; "" when they fit."""
    lists = {
        "missing": [name for name in expected if name not in got],
        "unexpected": [name for name in got if name not in expected],
        "of another shape": [
            f"{name} {tuple(got[name])}, expected {tuple(shape)}"
            for name, shape in expected.items()
            if name in got and got[name] != shape
        ],
    }
    return "; ".join(f"{len(names)} {what} ({some(names)})" for what, names in lists.items() if names)


def some(names: Sequence[str], most: int = 6) -> str:
    """The first of the names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
