"""`maisi labels library`: a folder of label maps that others are drawn from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi.cli.console import give, give_json, give_table, tell
from maisi.cli.labels.prepare import OF_IMAGES
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import run_task, tell_cost
from maisi.pipelines.label_requests import LibraryAddRequest, LibraryDrawRequest
from maisi.shapes import in_words

if TYPE_CHECKING:
    from maisi.data.library import LibraryEntry

library = typer.Typer(help="A library of label maps: add, list, draw.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="LIB", help="Folder of the library.", show_default=False)]


@takes(LibraryAddRequest, arguments={"sources": "SOURCE..."}, leave_out=OF_IMAGES)
def add(request: LibraryAddRequest, folder: Folder) -> None:
    """Add label maps to a library: read, checked, and listed with what they show and whose they are."""
    record = run_task("labels library add", request, folder, quiet=True)
    assert record is not None
    for warning in record.warnings:
        tell(f"warning: {warning}")
    give(str(folder / "library.jsonl"))


@library.command("list")
def list_(
    folder: Folder,
    region: Annotated[str | None, typer.Option(help="Only maps that show it.", show_default=False)] = None,
    structure: Annotated[
        list[str] | None, typer.Option(help="Only maps that have it; may be repeated.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the maps of a library."""
    from maisi.anatomy.regions import RegionSpan
    from maisi.anatomy.resize import members_of
    from maisi.anatomy.vocabulary import load_vocabulary
    from maisi.data.library import Library, Wanted, matching

    vocabulary = load_vocabulary()
    ids = [vocabulary.find(name) for name in structure or ()]
    structures = {vocabulary.name(id): frozenset(members_of(id, vocabulary)) for id in ids}
    top = None if region is None else RegionSpan.named(region).top.name.lower()
    found = matching(Library.read(folder).entries, Wanted(region=top, structures=structures))
    if as_json:
        give_json([entry.model_dump(mode="json") for entry in found])
    else:
        give_table(map(_row, found), ("id", "region", "size", "mm", "structures", "lesions", "for", "licence"))


def _row(entry: "LibraryEntry") -> tuple[object, ...]:
    return (
        entry.id,
        " to ".join(dict.fromkeys(entry.span)),
        in_words(entry.shape),
        in_words(entry.spacing_mm),
        len(entry.structures),
        ", ".join(entry.lesions) or "none",
        entry.split,
        entry.licence,
    )


@takes(LibraryDrawRequest, arguments={"library": "LIB"})
def draw(request: LibraryDrawRequest, out: Out, overwrite: Overwrite = False) -> None:
    """Draw label maps from a library, each bent into another person.

    Writes sample_000_labels, a preview, and sample_000_origin.json: which map it is from, and how far it is from the
    nearest map of the library.
    """
    record = run_task("labels library draw", request, out, overwrite)
    assert record is not None
    tell_cost(record.num_made, record)


library.command()(add)
library.command()(draw)
