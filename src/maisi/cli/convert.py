"""`maisi convert`: upstream's checkpoints, embeddings and settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from maisi.cli.console import give, tell
from maisi.cli.options import takes
from maisi.cli.run import run_task
from maisi.runs.requests import ConvertLatentsRequest, ConvertRequest


@takes(ConvertRequest, arguments={"checkpoints": "FILE..."}, config=False)
def convert(
    request: ConvertRequest,
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="Folder of the bundle (or YAML file) to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle if it exists.")] = False,
) -> None:
    """Convert what upstream left: checkpoints to a bundle, folders of embeddings to latents, settings to YAML.

    Checkpoints (.pt) of autoencoder, U-Net and ControlNet that belong together make one bundle. Folders of X_emb.nii.gz
    make a folder of latents for `maisi train`. A JSON file of settings makes a YAML file for `maisi generate --config`
    or `maisi train`; what was corrected or left out is told. Upstream's datalists are read by `maisi prepare`.
    """
    given = request.checkpoints
    if all(path.suffix == ".json" for path in given):
        _convert_settings(given, to, overwrite)
        return
    if all(path.is_dir() for path in given):
        asked = ConvertLatentsRequest(folders=given)
        record = run_task("convert latents", asked, to, overwrite, quiet=True)
        assert record is not None
        for warning in record.warnings:
            tell(f"warning: {warning}")
        give(str(to / "latents.jsonl"))
        return
    named = request.model_copy(update={"name": request.name or to.resolve().name})
    run_task("convert", named, to, overwrite, quiet=True)
    tell(f"see it with: maisi info {to}")
    give(str(to))


def _convert_settings(files: tuple[Path, ...], to: Path, overwrite: bool) -> None:
    from maisi.bundle.upstream_config import translated
    from maisi.storage.atomic import write_atomically
    from maisi.storage.settings import merged, write_settings

    if to.suffix not in (".yaml", ".yml"):
        raise typer.BadParameter(f"settings become a YAML file; {to} ends in {to.suffix or 'nothing'}")
    if to.exists() and not overwrite:
        raise typer.BadParameter(f"{to} exists; accepted: another name, or --overwrite")
    found = [translated(file) for file in files]
    kinds = sorted({each.kind for each in found})
    if len(kinds) > 1 and not all(kind.startswith("train") for kind in kinds):
        raise typer.BadParameter(f"these files are settings of different things: {', '.join(kinds)}")
    settings: dict[str, Any] = {}
    for each in found:
        settings = merged(settings, each.settings)
        for note in each.notes:
            tell(f"note: {note}")
    with write_atomically(to) as temporary:
        write_settings(temporary, settings)
    tell(f"settings of maisi {kinds[0]}")
    give(str(to))
