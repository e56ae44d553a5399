"""`maisi labels`: label maps made and changed."""

import typer

from maisi.cli.labels.generate import generate

labels = typer.Typer(help="Label maps: drawn by a network.", no_args_is_help=True)


@labels.callback()
def _group() -> None:
    pass


labels.command()(generate)
