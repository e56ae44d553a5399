"""Sizes of structures in a request file: a mapping from names to sizes, or a choice of such mappings."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maisi.errors import InvalidConfigError
from maisi.pipelines.many.distributions import check_value, draw_value, is_distribution, read_distribution

UNIT, SHARE = "unit", "share"
"""Of a size that is drawn: what its number counts, such as ml, and in which part of the samples it is asked for."""

Rng = Callable[[str], np.random.Generator]
"""The numbers of a structure by its name."""


def draw_sizes(value: Any, rng: Rng, where: str) -> list[str]:
    """Sizes as a request takes them, such as liver=0.6, in the order of names as they are written."""
    if is_distribution(value):
        return draw_sizes(read_distribution(value, where).draw(rng("")), rng, where)
    sizes = ((name, _draw_size(size, rng(name), f"{where}.{name}")) for name, size in value.items())
    return [f"{name}={size}" for name, size in sizes if size is not None]


def _draw_size(value: Any, rng: np.random.Generator, where: str) -> str | None:
    """The size of one structure; None where this sample does not ask for it."""
    if not isinstance(value, Mapping):
        return _written(value)
    rest = {key: part for key, part in value.items() if key not in (UNIT, SHARE)}
    asked = rng.random() < value.get(SHARE, 1)
    drawn = draw_value(rest, rng, where)
    return f"{_written(drawn)}{value.get(UNIT, '')}" if asked else None


def check_sizes(value: Any, where: str) -> None:
    """Nothing, or an `InvalidConfigError` for what are no sizes of structures, or cannot be drawn."""
    if is_distribution(value):
        made = read_distribution(value, where)
        choices = getattr(made, "choice", None)
        if not isinstance(choices, list):
            raise InvalidConfigError(f"{where}: accepted: sizes by names of structures, or a choice of a list of such")
        for each in choices:
            check_sizes(each, where)
        return
    if not isinstance(value, Mapping):
        raise InvalidConfigError(f"{where} is {value!r}; accepted: sizes by names of structures, such as liver: 0.6")
    for name, size in value.items():
        _check_size(size, f"{where}.{name}")


def _check_size(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        share, unit = value.get(SHARE, 1), value.get(UNIT, "")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InvalidConfigError(f"{where}.{SHARE}: {share!r} is not accepted: a part of 1, such as 0.5")
        if not isinstance(unit, str):
            raise InvalidConfigError(f"{where}.{UNIT}: {unit!r} is not accepted: a unit, such as ml")
        check_value({key: part for key, part in value.items() if key not in (UNIT, SHARE)}, where)
    elif isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidConfigError(f"{where} is {value!r}; accepted: a size, none, or a distribution of sizes")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
