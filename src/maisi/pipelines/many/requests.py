"""A request file: how many samples, and what each of them is drawn from. Imports no torch."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from maisi.anatomy.regions import BodyRegion
from maisi.bundle.places import find_bundle, lasting_name_of
from maisi.compute.across import Across
from maisi.compute.compute import Compute
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.pipelines.many.distributions import check_value, draw_value, plain_items
from maisi.pipelines.many.sizes import check_sizes, draw_sizes
from maisi.pipelines.requests import DEFAULT_BUNDLE, BundleName, GenerateRequest
from maisi.shapes import Frozen
from maisi.space.reading import ReadOptions
from maisi.storage.folders import user_path
from maisi.storage.settings import check_settings, merged, read_settings

COMMAND = "generate many"
SIZES = ("anatomy", "tumours")
"""Settings that give structures their sizes, both for the requests' `anatomy`."""

DRAWN = tuple(
    name
    for name in GenerateRequest.model_fields
    if name not in ("count", "first", "seed", "bundle", "reading", "compute")
)
"""Settings of a sample that a request file may draw."""

SAID = (*DRAWN, "tumours")
"""Settings of a sample as a request file names them."""

LABEL_BUNDLE = "label_bundle"
_PLACES = (LABEL_BUNDLE, *(name for name in DRAWN if "Path" in str(GenerateRequest.model_fields[name].annotation)))

_NESTED: dict[str, type[BaseModel]] = {
    name: kind
    for name in DRAWN
    if isinstance(kind := GenerateRequest.model_fields[name].annotation, type) and issubclass(kind, BaseModel)
}

ON_AXES = ("size", "spacing")
PHANTOM = "phantom"
WEIGHT = "weight"
MOST_SAMPLES = 1_000_000  # all requests are drawn and checked before the first sample is made
_NUM_SEED_BITS = 53  # what a number in JSON holds


class ManyRequest(Frozen):
    """A number of samples, each drawn from (seed, index) alone.

    Besides what is named here it takes the settings of `maisi generate`, each a value or a distribution; `anatomy` and
    `tumours` map names of structures to sizes. Each of `groups` is such settings again, which go before those of all,
    with a weight: a sample is of one group.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    count: int = Field(ge=1, le=MOST_SAMPLES)
    seed: int = Field(default=0, ge=0)
    bundle: BundleName = DEFAULT_BUNDLE
    groups: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reading: ReadOptions = ReadOptions()
    compute: Compute = Compute()
    across: Across = Across()

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, said: Any) -> Any:
        """What is drawn as JSON has it: with texts for keys, so that it is the same after it was written and read."""
        if not isinstance(said, Mapping):
            return said
        return {name: said[name] if name in _OWN else _as_json(said[name]) for name in said}

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "ManyRequest":
        _check_drawn(self.drawn, "", (*_OWN, *SAID), GenerateRequest)
        for name, settings in self.groups.items():
            rest = {key: value for key, value in settings.items() if key != WEIGHT}
            _check_drawn(rest, f"groups.{name}.", (WEIGHT, *SAID), GenerateRequest)
            weight = settings.get(WEIGHT, 1)
            if not isinstance(weight, int | float) or not 0 < weight < 1e9:
                raise InvalidConfigError(f"groups.{name}.{WEIGHT}: {weight!r} is not accepted: a number above 0")
        return self

    @property
    def drawn(self) -> dict[str, Any]:
        """The settings of all samples, values and distributions."""
        return dict(self.model_extra or {})


_OWN = tuple(ManyRequest.model_fields)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _check_drawn(settings: Mapping[str, Any], where: str, allowed: Iterable[str], kind: type[BaseModel]) -> None:
    """Nothing, or an `InvalidConfigError` for a setting of `kind` that is unknown or cannot be drawn."""
    known = list(allowed)
    for name, value in settings.items():
        if name not in known:
            known += [f"{group}.{inner}" for group, kind in _NESTED.items() for inner in kind.model_fields]
            within = [each for each in known if each.rpartition(".")[2] == name]
            close = within or get_close_matches(name, known, n=1, cutoff=0.55)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
            raise InvalidConfigError(f"unknown setting {where + name!r}; {hint}")
        if name in _NESTED and isinstance(value, Mapping):
            inner = tuple(_NESTED[name].model_fields)
            _check_drawn(value, f"{where}{name}.", inner, _NESTED[name])
        elif name in SIZES:
            check_sizes(value, where + name)
        else:
            check_value(value, where + name)
            _check_items(kind, name, value, where)


def _check_items(kind: type[BaseModel], name: str, value: Any, where: str) -> None:
    """Nothing, or an `InvalidConfigError` for an item of a choice that the setting never takes."""
    field = kind.model_fields[name]
    alone = create_model(name, **{name: (field.annotation, field)})  # type: ignore[call-overload]
    for item in plain_items(value):
        try:
            check_settings(alone, {name: _on_axes(item) if name in ON_AXES else item})
        except InvalidConfigError as error:
            raise InvalidConfigError(f"{where}{error}") from error
        if name == "region" and item is not None:
            try:
                BodyRegion.named(item)
            except InvalidRequestError as error:
                raise InvalidConfigError(f"{where}{name}: {error}") from error


def read_requests(path: Path, options: Mapping[str, Any], across: Across) -> ManyRequest:
    """The request of a file; settings of the command line hold for every sample and go before those of the file."""
    settings = read_settings(path)
    meant_for = settings.pop("command", COMMAND)
    if meant_for != COMMAND:
        raise InvalidConfigError(f"{path} holds settings of `maisi {meant_for}`, not a request file")
    groups = {name: {k: v for k, v in each.items() if k not in options} for name, each in _groups(settings, path)}
    more = {"groups": groups} if groups else {}
    return check_settings(ManyRequest, {**merged(settings, options), **more, "across": across.model_dump()})


def _groups(settings: Mapping[str, Any], path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    groups = settings.get("groups", {})
    if not isinstance(groups, Mapping) or not all(isinstance(each, Mapping) for each in groups.values()):
        raise InvalidConfigError(f"{path}: groups is {groups!r}; accepted: a mapping of settings for each name")
    return ((str(name), dict(each)) for name, each in groups.items())


# Drawing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What one sample is to be: its settings before they are checked, and the group that it is of ("" for none)."""

    index: int
    group: str
    settings: dict[str, Any]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return stem_of(self.index)


def stem_of(index: int) -> str:
    """What the files of a sample are called."""
    return f"sample_{index:05d}"


def draw_request(many: ManyRequest, index: int) -> Drawn:
    """What sample `index` is to be. Each setting has numbers of its own: another distribution moves no other one."""
    group = _draw_group(many, index)
    settings = {**many.drawn, **{k: v for k, v in many.groups.get(group, {}).items() if k != WEIGHT}}
    values = {name: _draw(many, index, name, value) for name, value in settings.items() if name not in SIZES}
    sizes = [size for name in SIZES if name in settings for size in _draw_sizes(many, index, name, settings[name])]
    if sizes:
        values["anatomy"] = sizes
    if values.get("labels") == PHANTOM:
        values |= {"labels": None, PHANTOM: True}
    for name in ON_AXES:
        if name in values:
            values[name] = _on_axes(values[name])
    shared = {"bundle": many.bundle, "reading": many.reading, "compute": many.compute}
    return Drawn(index, group, {**values, **shared, "count": 1, "seed": _seed(many, index)})


def _draw(many: ManyRequest, index: int, name: str, value: Any) -> Any:
    """The value of a setting, or of each setting in a group of them."""
    if name in _NESTED and isinstance(value, Mapping):
        return {part: draw_value(each, _rng(many, index, f"{name}.{part}"), name) for part, each in value.items()}
    return draw_value(value, _rng(many, index, name), name)


def _draw_sizes(many: ManyRequest, index: int, name: str, value: Any) -> list[str]:
    return draw_sizes(value, lambda part: _rng(many, index, f"{name}.{part}"), name)


def request_of(drawn: Drawn) -> GenerateRequest:
    """The request of a sample; raises `InvalidConfigError`, with its index, for one that is none."""
    try:
        return check_settings(GenerateRequest, drawn.settings)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"request {drawn.index}: {error}") from error


def paths_of(many: ManyRequest) -> tuple[Path, ...]:
    """The files and folders that samples name or are drawn from, bundles of label generators too."""
    found: dict[Path, None] = {}  # in order, each once

    def note(name: str, value: str) -> str:
        found.setdefault(find_bundle(value) if name == LABEL_BUNDLE else Path(value))
        return value

    _with_places(many, note)
    return tuple(found)


def absolute(many: ManyRequest) -> ManyRequest:
    """The request with absolute paths, so that it says the same anywhere on this machine."""
    return _with_places(many, _absolute)


def _absolute(name: str, value: str) -> str:
    return lasting_name_of(value) if name == LABEL_BUNDLE else str(user_path(value).absolute())


def _with_places(many: ManyRequest, change: Callable[[str, str], str]) -> ManyRequest:
    """The request with what names files, folders and bundles changed, by the name of the setting and its value."""
    groups = {name: _changed(settings, change) for name, settings in many.groups.items()}
    return many.model_copy(update={**_changed(many.drawn, change), "groups": groups})


def _changed(settings: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    return {
        name: _change(value, partial(change, name)) if name in _PLACES else value for name, value in settings.items()
    }


def _change(value: Any, change: Callable[[str], str]) -> Any:
    """A value with its places changed, wherever they are in it."""
    if isinstance(value, str):
        return value if value == PHANTOM else change(value)
    if isinstance(value, list):
        return [_change(each, change) for each in value]
    if isinstance(value, Mapping) and isinstance(value.get("choice"), Mapping):
        return {"choice": {_change(name, change): weight for name, weight in value["choice"].items()}}
    return {kind: _change(each, change) for kind, each in value.items()} if isinstance(value, Mapping) else value


def _draw_group(many: ManyRequest, index: int) -> str:
    if not many.groups:
        return ""
    weights = np.array([settings.get(WEIGHT, 1) for settings in many.groups.values()], float)
    return list(many.groups)[int(_rng(many, index, "groups").choice(len(weights), p=weights / weights.sum()))]


def _on_axes(value: Any) -> Any:
    """A value for each axis: of one for all, or of one for x and y and one for z."""
    if isinstance(value, int | float):
        return [value] * 3
    return [value[0], value[0], value[1]] if isinstance(value, list) and len(value) == 2 else value


def _rng(many: ManyRequest, index: int, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([many.seed, index, zlib.crc32(name.encode())]))


def _seed(many: ManyRequest, index: int) -> int:
    return int(
        np.random.SeedSequence([many.seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(64 - _NUM_SEED_BITS)
    )
