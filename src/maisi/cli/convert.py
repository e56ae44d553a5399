"""`maisi convert`: upstream's checkpoints into a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, tell
from maisi.cli.options import takes
from maisi.cli.run import run_task
from maisi.runs.requests import ConvertRequest


@takes(ConvertRequest, arguments={"checkpoints": "CKPT..."}, config=False)
def convert(
    request: ConvertRequest,
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="Folder of the bundle to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle if it exists.")] = False,
) -> None:
    """Convert released checkpoints (autoencoder, U-Net, ControlNet) into a bundle."""
    named = request.model_copy(update={"name": request.name or to.resolve().name})
    run_task("convert", named, to, overwrite, quiet=True)
    tell(f"see it with: maisi info {to}")
    give(str(to))
