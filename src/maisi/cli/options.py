"""Options that several commands have, and how options, settings file and assignments become one request."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Request = TypeVar("Request")


def three_numbers(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The values of an option that takes three numbers; an option that was taken for one of them is told."""
    for value in values or ():
        try:
            float(value)
        except ValueError as error:
            raise typer.BadParameter(f"{' '.join(values or ())!r} is not three numbers") from error
    return values


Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results, new or empty.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left there.")]
BundleName = Annotated[
    str | None, typer.Option("--bundle", "-b", help="Packaged bundle or folder.", show_default="ct-small")
]
Three = tuple[str, str, str]
Size = Annotated[
    Three | None,
    typer.Option(
        "--size", metavar="X Y Z", help="Voxels.", show_default="what shows the region", callback=three_numbers
    ),
]
Spacing = Annotated[
    Three | None, typer.Option("--spacing", metavar="X Y Z", help="Voxel size in mm.", callback=three_numbers)
]
Precision = Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="the faster one here")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cpu")]
Memory = Annotated[str | None, typer.Option(help="Stay within this much memory, such as 8GB.")]
Scratch = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where --memory may keep tensors on disk; emptied afterwards.")
]
HostMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="On a GPU: how much of the machine's own memory --memory may use besides."),
]
Threads = Annotated[int | None, typer.Option(help="Threads to compute with.", show_default="one a core")]
Series = Annotated[str | None, typer.Option(metavar="UID", help="The series to take of a DICOM folder with several.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings in YAML, such as a run.yaml.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="One setting more; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def request_of(
    kind: type[Request], command: str, config: Path | None, assignments: list[str] | None, options: dict[str, Any]
) -> Request:
    """The request of a command line: options count more than assignments, these more than the settings file."""
    from maisi.errors import InvalidConfigError
    from maisi.pipelines.settings import assigned, checked, read_settings

    settings = read_settings(config) if config is not None else {}
    meant_for = settings.pop("command", command)
    if meant_for != command:
        raise InvalidConfigError(f"{config} holds settings of `maisi {meant_for}`, not of `maisi {command}`")
    settings = assigned(settings, assignments or [])
    given = {name: value for name, value in options.items() if value is not None}
    return checked(kind, {**settings, **given})  # type: ignore[type-var]
