"""Values of a request file: fixed, or a distribution that each request draws from. Imports no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen
from maisi.space.endings import IMAGES, image_files

DIGITS = 4
"""Significant ones of a number that is drawn: a request is to be read by people."""


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] <= ends[1]):
        raise ValueError(f"{list(ends)} are not the least and the greatest value")
    return ends


def _whole(ends: tuple[int, int]) -> tuple[int, int]:
    _ordered(ends)
    return ends


def _positive(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] <= 0:
        raise ValueError(f"{list(ends)} are not above 0")
    return ends


Ends = Annotated[tuple[float, float], AfterValidator(_ordered)]


@runtime_checkable
class Distribution(Protocol):
    """What a mapping in a request file says of a value."""

    def draw(self, rng: np.random.Generator) -> Any:
        """One value; it may hold distributions in turn."""


class Uniform(Frozen):
    """Numbers between two ends, all alike."""

    uniform: Ends

    def draw(self, rng: np.random.Generator) -> float:
        return _short(rng.uniform(*self.uniform), self.uniform)


class LogUniform(Frozen):
    """Numbers between two ends above 0, their logarithms all alike."""

    log_uniform: Annotated[Ends, AfterValidator(_positive)]

    def draw(self, rng: np.random.Generator) -> float:
        low, high = self.log_uniform
        return _short(math.exp(rng.uniform(math.log(low), math.log(high))), self.log_uniform)


class Normal(Frozen):
    """Numbers about a mean with a standard deviation, drawn again until they lie within two ends."""

    normal: tuple[float, Annotated[float, Field(gt=0)]]
    within: Ends

    def draw(self, rng: np.random.Generator) -> float:
        low, high = self.within
        for _ in range(_MOST_TRIES):
            drawn = rng.normal(*self.normal)
            if low <= drawn <= high:
                return _short(drawn, self.within)
        return _short(min(max(self.normal[0], low), high), self.within)


class Whole(Frozen):
    """Whole numbers from the first to the second, both included."""

    whole: Annotated[tuple[int, int], AfterValidator(_whole)]

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.whole[0], self.whole[1] + 1))


class Choice(Frozen):
    """One of several values, each as likely, or as their weights say."""

    choice: Annotated[list[Any], Field(min_length=1)] | Annotated[dict[str, float], Field(min_length=1)]

    def draw(self, rng: np.random.Generator) -> Any:
        if isinstance(self.choice, list):
            return self.choice[int(rng.integers(len(self.choice)))]
        weights = np.array(list(self.choice.values()), float)
        return list(self.choice)[int(rng.choice(len(weights), p=weights / weights.sum()))]


class FileOf(Frozen):
    """One of the label maps (.nii, .nii.gz) in a folder."""

    file_of: Path

    def draw(self, rng: np.random.Generator) -> str:
        files = label_maps(self.file_of)
        return str(files[int(rng.integers(len(files)))])


_MOST_TRIES = 1000
KINDS: dict[str, type[Frozen]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "normal": Normal,
    "whole": Whole,
    "choice": Choice,
    "file_of": FileOf,
}


def label_maps(folder: Path) -> list[Path]:
    """The label maps in a folder by their names; `InvalidConfigError` where there is none."""
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise InvalidConfigError(f"file_of: no label map in {folder}; accepted: a folder of {', '.join(IMAGES)}")
    return files


def is_distribution(value: Any) -> bool:
    """Whether a value is a mapping that names a kind of distribution."""
    return isinstance(value, Mapping) and any(kind in value for kind in KINDS)


def read_distribution(value: Mapping[str, Any], where: str) -> Distribution:
    """The distribution that a mapping describes; `InvalidConfigError`, with the place, for anything else."""
    named = [kind for kind in KINDS if kind in value]
    if len(named) != 1:
        raise InvalidConfigError(f"{where}: {_no_kind(value, named)}")
    kind = KINDS[named[0]]
    strange = [key for key in value if key not in kind.model_fields]
    if strange:
        close = get_close_matches(str(strange[0]), kind.model_fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"{named[0]} has: {', '.join(kind.model_fields)}"
        raise InvalidConfigError(f"{where}: unknown setting {strange[0]!r} of {named[0]}; {hint}")
    try:
        made = kind.model_validate(dict(value))
    except ValidationError as error:
        raise InvalidConfigError(f"{where}: {_problem(error)}") from error
    if isinstance(made, Choice) and isinstance(made.choice, dict):
        _check_weights(made.choice, where)
    assert isinstance(made, Distribution)
    return made


def _no_kind(value: Mapping[str, Any], named: Sequence[str]) -> str:
    if named:
        return f"two distributions in one ({' and '.join(named)}); accepted: one"
    first = str(next(iter(value), ""))
    close = get_close_matches(first, KINDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(KINDS)}"
    return f"unknown distribution {first!r}; {hint}"


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{first['loc'][0]}: {first['input']!r} is not accepted: {reason}"


def _check_weights(weights: Mapping[str, float], where: str) -> None:
    wrong = next((name for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)), None)
    if wrong is not None or not sum(weights.values()):
        got = f"{wrong!r} has {weights[wrong]:g}" if wrong is not None else "they sum to 0"
        raise InvalidConfigError(f"{where}: weights of a choice are at least 0 and not all 0, and {got}")


def draw_value(value: Any, rng: np.random.Generator, where: str) -> Any:
    """The value with every distribution in it drawn, again and again where one gives another."""
    if isinstance(value, Mapping):
        return draw_value(read_distribution(value, where).draw(rng), rng, where)
    if isinstance(value, list | tuple):
        return [draw_value(item, rng, where) for item in value]
    return value


def check_value(value: Any, where: str) -> None:
    """Nothing, or an `InvalidConfigError` for a distribution that cannot be drawn from, however deep it lies."""
    if isinstance(value, Mapping):
        made = read_distribution(value, where)
        if isinstance(made, FileOf):
            label_maps(made.file_of)
        if isinstance(made, Choice) and isinstance(made.choice, list):
            check_value(made.choice, where)
    elif isinstance(value, list | tuple):
        for item in value:
            check_value(item, where)


def plain_items(value: Any) -> Iterator[Any]:
    """What a choice names that is drawn as it stands, in choices within it too."""
    for item in value.get("choice", ()) if isinstance(value, Mapping) else ():
        if isinstance(item, Mapping):
            yield from plain_items(item)
        elif not isinstance(item, list | tuple):
            yield item


def _short(number: float, ends: tuple[float, float]) -> float:
    """A number of a few digits, still within its ends."""
    low, high = ends
    return min(max(float(f"{number:.{DIGITS}g}"), low), high)
