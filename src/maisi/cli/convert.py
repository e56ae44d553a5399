"""`maisi convert`: upstream's checkpoints into a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, tell


def convert(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CKPT...", help="Upstream .pt files that belong together.", show_default=False),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="Folder of the bundle to make.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle.", show_default="the folder's")] = None,
    model: Annotated[str | None, typer.Option(help="ddpm-ct, rflow-ct or mask, where the files do not say it.")] = None,
    scale_factor: Annotated[float | None, typer.Option(help="Of the latents, where the U-Net's file has none.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "that of the converted checkpoints",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle if it exists.")] = False,
) -> None:
    """Convert released checkpoints (autoencoder, U-Net, ControlNet) into a bundle."""
    from maisi.bundle.convert import convert

    path = convert(
        checkpoints,
        to,
        name=name,
        model=model,
        scale_factor=scale_factor,
        licence=licence,
        overwrite=overwrite,
    )
    tell(f"see it with: maisi info {path}")
    give(str(path))
