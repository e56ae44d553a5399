"""Settings of a request: from a YAML file, `a.b=value` assignments and options, in this order, strictly checked."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from maisi.errors import InvalidConfigError
from maisi.storage.atomic import write_atomically

Settings = TypeVar("Settings", bound=BaseModel)


class _SaidTwice(yaml.YAMLError):
    """A mapping has a name twice, of which YAML libraries silently keep the last."""


class _EachOnce(yaml.SafeLoader):
    """A loader that refuses mappings with a name twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[str]()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in seen:
                line = name.start_mark.line + 1
                raise _SaidTwice(f"says {name.value!r} twice, again in line {line}; accepted: once")
            if isinstance(name, yaml.ScalarNode):
                seen.add(name.value)
        return node


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `InvalidConfigError` for anything else."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachOnce)
    except FileNotFoundError as error:
        raise InvalidConfigError(f"no settings file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"{path} cannot be read as settings: {error}") from error
    except _SaidTwice as error:
        raise InvalidConfigError(f"{path} {error}") from error
    except yaml.YAMLError as error:
        raise InvalidConfigError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidConfigError(f"{path} is no mapping of settings; accepted: lines such as `steps: 10`")
    return content


def with_assignments(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The settings with assignments such as `steps=20` or `limits.max_size=[64, 64, 64]`; values are YAML."""
    result = dict(settings)
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign or not name.strip():
            raise InvalidConfigError(f"{assignment!r} assigns nothing; accepted: name=value or group.name=value")
        try:
            value = yaml.load(text, Loader=_EachOnce)
        except _SaidTwice as error:
            raise InvalidConfigError(f"{assignment!r} {error}") from error
        except yaml.YAMLError as error:
            raise InvalidConfigError(f"the value of {assignment!r} is no YAML: {error}") from error
        result = _with(result, name.strip().split("."), value, assignment)
    return result


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with others that count more, group by group."""
    result = dict(settings)
    for name, value in more.items():
        inner = result.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[name] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def check_settings(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """The request of these settings; `InvalidConfigError` with a line for each setting that is unknown or wrong."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise InvalidConfigError("\n".join(dict.fromkeys(_told(kind, p) for p in error.errors()))) from error


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings as YAML, in their order; the file appears whole."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, allow_unicode=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _with(settings: Mapping[str, Any], names: list[str], value: Any, assignment: str) -> dict[str, Any]:
    name, *rest = names
    if not rest:
        return {**settings, name: value}
    inner = settings.get(name, {})
    if not isinstance(inner, Mapping):
        raise InvalidConfigError(f"{assignment!r}: {name} is {inner!r}, which has no settings inside")
    return {**settings, name: _with(inner, rest, value, assignment)}


def _told(kind: type[BaseModel], problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known, wrong = _settings_at(kind, problem["loc"][:-1]), str(problem["loc"][-1])
        inside = [f"{group}.{name}" for group in known for name in _settings_at(kind, (*problem["loc"][:-1], group))]
        within = [name for name in inside if name.rpartition(".")[2] == wrong]
        return f"unknown setting {where!r}; {f'did you mean {within[0]!r}?' if within else close_to(wrong, known)}"
    reason = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    reason = reason.partition(", unable to parse")[0]
    if problem["type"] in {"tuple_type", "list_type"}:
        reason = "a list such as [2, 2, 2]"
    if problem["type"] in {"byte_size", "byte_size_unit"}:
        reason = "an amount of memory; write 8GB, 500MB or 2GiB"
    if problem["type"] == "missing":
        return f"setting {where!r} is missing"
    if problem["type"] == "value_error" or not where:
        return f"{where}: {reason}" if where else reason
    return f"{where}: {problem['input']!r} is not accepted; it should be {reason[:1].lower()}{reason[1:]}"


def close_to(wrong: str, known: Sequence[str]) -> str:
    """A hint at the name that was meant, or at all that there are."""
    close = get_close_matches(wrong, known, n=1, cutoff=0.55)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def _settings_at(kind: Any, location: Iterable[Any]) -> list[str]:
    """Names of the settings of the model at a place inside `kind`; none where a plain value is there."""
    for part in location:
        models = [m for m in _models(kind) if part in m.model_fields]
        kind = models[0].model_fields[part].annotation if models else (kind if not _models(kind) else None)
    return [name for model in _models(kind) for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
