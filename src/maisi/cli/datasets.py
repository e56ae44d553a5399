"""`maisi datasets`: the data that the paper's networks were trained on."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maisi.cli.console import give, give_json, give_table
from maisi.cli.options import AsJson

if TYPE_CHECKING:
    from maisi.data.catalogue import Catalogue, Dataset, Network


def datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Nothing: all data sets.", show_default=False)
    ] = None,
    network: Annotated[
        Literal["autoencoder", "diffusion", "controlnet"] | None,
        typer.Option(help="Only what this network was trained on.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the data that the paper's networks were trained on: how much, of what, where it is and how to read it.

    With a name: also its licence, its address, and what becomes of its labels here.
    """
    from maisi.data.catalogue import load_catalogue

    catalogue = load_catalogue()
    if name is not None:
        _show_one(catalogue.dataset(name), as_json)
    elif as_json:
        give_json(_as_json(catalogue, network))
    else:
        _show_all(catalogue, network)


def _shown(catalogue: "Catalogue", network: "Network | None") -> dict[str, "Dataset"]:
    return {name: each for name, each in catalogue.datasets.items() if network is None or network in each.rows}


def _show_all(catalogue: "Catalogue", network: "Network | None") -> None:
    from maisi.data.catalogue import NETWORKS, total

    columns = NETWORKS if network is None else (network,)
    rows = []
    for name, each in _shown(catalogue, network).items():
        counts = [total(each.rows[column]).words if column in each.rows else "" for column in columns]
        rows.append((name, each.modality, *counts, each.layout or "", each.licence or "", each.shows))
    for modality in ("ct", "mr"):
        tables = [catalogue.networks[column].printed.get(modality) for column in columns]
        if any(tables):
            rows.append(
                (f"all {modality.upper()}", modality, *(t.words if t else "" for t in tables), "", "", "as printed")
            )
    give_table(rows, ("", "", *columns, "layout", "licence", "shows"))
    give("counts: training + validation, or volumes")
    for column in columns:
        for remark in catalogue.remarks(column):
            give(remark)


def _show_one(dataset: "Dataset", as_json: bool) -> None:
    from maisi.data.catalogue import NETWORKS, becomes

    labels = becomes(dataset)
    if as_json:
        give_json(_facts(dataset) | {"labels": [{"id": i, "name": n, "becomes": b} for i, n, b in labels]})
        return
    read = "as downloaded" if dataset.as_downloaded else "arranged or listed by you, see docs/guides/datasets.md"
    about = [("title", dataset.title), ("modality", dataset.modality), ("shows", dataset.shows)]
    about += [(column, f"{row.words} ({row.printed})") for column in NETWORKS for row in dataset.rows.get(column, ())]
    about += [
        ("licence", dataset.licence or "not certain: see the source"),
        ("where", dataset.where or "not known"),
        ("doi", dataset.doi or ""),
        ("layout", f"{dataset.layout}, {read}" if dataset.layout else "not known"),
        ("numbering", dataset.numbering or ""),
        *(("note", note) for note in dataset.notes),
    ]
    give_table([row for row in about if row[1]])
    if labels:
        give("")
        give_table([("" if id is None else id, *rest) for id, *rest in labels], ("id", "label", "becomes"))


def _facts(dataset: "Dataset") -> dict[str, Any]:
    return dataset.model_dump(mode="json", exclude={"labels"})


def _as_json(catalogue: "Catalogue", network: "Network | None") -> dict[str, Any]:
    from maisi.data.catalogue import NETWORKS

    columns = NETWORKS if network is None else (network,)
    return {
        "source": catalogue.source,
        "networks": {c: catalogue.networks[c].model_dump(mode="json", exclude_none=True) for c in columns},
        "remarks": {column: catalogue.remarks(column) for column in columns},
        "datasets": {name: _facts(each) for name, each in _shown(catalogue, network).items()},
    }
