"""Options of commands: those that several have, and those that a request's model describes."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

SHORT = {"bundle": "-b", "count": "-n"}
FOLDERS = ("scratch", "data", "inputs", "outputs")
ENVIRONMENT = {"precision": "MAISI_PRECISION"}
ASSIGNING = ("--anatomy",)  # options that take any number of NAME=VALUE
METAVARS = {2: "LOW HIGH", 3: "X Y Z"}


def numbers(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The values of an option that takes several numbers; an option that was taken for one of them is told."""
    for value in values or ():
        try:
            float(value)
        except ValueError as error:
            count = {2: "two", 3: "three"}[len(values or ())]
            raise typer.BadParameter(f"{' '.join(values or ())!r} is not {count} numbers") from error
    return values


def one_by_one(arguments: Iterable[str]) -> list[str]:
    """The arguments with an option of many assignments said before each: --anatomy liver=0.6 spleen=180ml."""
    result: list[str] = []
    current = None
    for argument in arguments:
        follows = current is not None and result[-1] != current and "=" in argument and not argument.startswith("-")
        if follows and current is not None:
            result.append(current)
        elif argument.startswith("-"):
            current = argument if argument in ASSIGNING else None
        elif result and result[-1] != current:
            current = None
        result.append(argument)
    return result


Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results, new or empty.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left there.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings in YAML, such as a run.yaml.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="One setting more; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@dataclass(frozen=True)
class Setting:
    """One setting of a request that is an option: where it is in the model, and what the model says of it."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def name(self) -> str:
        return self.path[-1]

    def parameter(self, metavar: str | None, required: bool) -> inspect.Parameter:
        """The parameter of a command function, as typer reads it; with a metavar it is an argument."""
        kind, options = self._kind()
        default: Any = inspect.Parameter.empty if required else (False if kind is bool else None)
        if metavar is not None:
            info: Any = typer.Argument(metavar=metavar, help=self.field.description, show_default=False)
        else:
            names = [f"--{self.name.replace('_', '-')}", *([SHORT[self.name]] if self.name in SHORT else [])]
            shown = False if required else self._shown_default()
            info = typer.Option(
                *names, help=self.field.description, show_default=shown, envvar=ENVIRONMENT.get(self.name), **options
            )
        wanted = kind if required or kind is bool else kind | None
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[wanted, info]
        )

    def _shown_default(self) -> Any:
        extra = self.field.json_schema_extra
        if isinstance(extra, dict) and "shown_default" in extra:
            return str(extra["shown_default"])
        default = self.field.default
        return str(default) if default not in (None, False, 0.0, ()) or self.name == "seed" else False

    def _kind(self) -> tuple[Any, dict[str, Any]]:
        """The type that typer parses, texts being left to the model, and options that go with it."""
        kind = plain(self.field.annotation)
        if get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis:
            count = len(get_args(kind))
            return {2: tuple[str, str], 3: tuple[str, str, str]}[count], {
                "metavar": METAVARS[count],
                "callback": numbers,
            }
        if get_origin(kind) is tuple:
            shown = {"metavar": "NAME=VALUE..."} if f"--{self.name}" in ASSIGNING else {}
            return list[plain(get_args(kind)[0])], shown  # type: ignore[misc]
        if kind is Path:
            return Path, {"metavar": "DIR" if self.name in FOLDERS else "FILE"}
        return (kind if kind in (bool, int, float) else str), {}


def plain(annotation: Any) -> Any:
    """A type without `| None`, `Annotated` and `Literal`."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if type(None) in get_args(annotation) and len(inner) == 1:
        return plain(inner[0])
    if get_origin(annotation) is Literal or annotation is ByteSize:
        return str
    return annotation


def settings_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """The settings of a model and of the models in it."""
    for name, field in model.model_fields.items():
        kind = plain(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, (*path, name))
        else:
            yield Setting((*path, name), field)


def takes(
    model: type[BaseModel],
    *,
    arguments: dict[str, str] | None = None,
    required: Collection[str] = (),
    leave_out: Collection[str] = (),
    config: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function of a `request` and options of its own a command whose options are the settings of a model.

    `arguments` are settings that are given by place, with their metavar, in brackets where they may be left out;
    `leave_out` names settings, or groups of them, that are no options. With `config`, a settings file and assignments
    may say the rest.
    """
    positional = arguments or {}
    settings = {
        setting.name: setting
        for setting in settings_of(model)
        if not {setting.path[0], ".".join(setting.path)} & set(leave_out)
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for name, p in inspect.signature(function).parameters.items() if name not in ("request", "context")]
        given = [p for p in own if _is_argument(p)]  # before those of the request, which may be any number
        own = [p for p in own if not _is_argument(p)]
        first = [settings[name].parameter(metavar, metavar[0] != "[") for name, metavar in positional.items()]
        others = [s.parameter(None, n in required) for n, s in settings.items() if n not in positional]
        extra = [_parameter("config", Config), _parameter("assignments", Assignments)] if config else []

        def command(context: typer.Context, **given: Any) -> None:
            values = {name: given.pop(name) for name in settings}
            rest = {name: given.pop(name, None) for name in ("config", "assignments")}
            chosen = {
                name: value
                for name, value in values.items()
                if value is not None and value is not False and value != []
            }
            nested = _nested((settings[name].path, value) for name, value in chosen.items())
            name = context.command_path.partition(" ")[2]
            given |= {"context": context} if "context" in inspect.signature(function).parameters else {}
            function(request=_request(model, name, rest["config"], rest["assignments"], nested), **given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*given, *first, *own, *others, *extra)]
        parameters.insert(0, inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(each, ArgumentInfo) for each in getattr(parameter.annotation, "__metadata__", ()))


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _nested(values: Any) -> dict[str, Any]:
    """Values by their paths as mappings in mappings."""
    result: dict[str, Any] = {}
    for path, value in values:
        inner = result
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return result


def _request(
    model: type[BaseModel], command: str, config: Path | None, assignments: list[str] | None, options: dict[str, Any]
) -> BaseModel:
    """The request of a command line: options count more than assignments, these more than the settings file."""
    from maisi.errors import InvalidConfigError
    from maisi.storage.settings import check_settings, merged, read_settings, with_assignments

    settings = read_settings(config) if config is not None else {}
    meant_for = settings.pop("command", command)
    if meant_for != command:
        raise InvalidConfigError(f"{config} holds settings of `maisi {meant_for}`, not of `maisi {command}`")
    return check_settings(model, merged(with_assignments(settings, assignments or []), options))
