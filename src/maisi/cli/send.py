"""`maisi send`: DICOM files to a DICOMweb server."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import complain, give_json, progress, tell
from maisi.cli.options import AsJson

TOLD = 5


def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="DICOM files, or folders of them.")],
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="DICOMweb server, such as http://127.0.0.1:8042/dicom-web.")
    ],
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="MAISI_SEND_TOKEN", help="Sent as Authorization: Bearer; https only, but on loopback."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store DICOM files on a server (STOW-RS), such as Orthanc or a PACS; exit 1 where it does not take one of them."""
    from maisi.space.dicom.stow import Server, batches, dicom_files, store

    server, instances = Server(to, token), dicom_files(files)
    refused: list[str] = []
    done = 0
    with progress("send") as on_stage:
        for batch in batches(instances):
            refused += store(batch, server)
            done += len(batch)
            on_stage("send", done, len(instances))
    if as_json:
        give_json({"to": to, "sent": len(instances), "stored": len(instances) - len(refused), "refused": refused})
    tell(f"{len(instances) - len(refused)} of {len(instances)} files stored on {to}")
    if refused:
        more = f"; and {len(refused) - TOLD} more" if len(refused) > TOLD else ""
        complain("; ".join(refused[:TOLD]) + more)
        raise typer.Exit(1)
