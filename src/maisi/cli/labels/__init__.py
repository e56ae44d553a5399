"""`maisi labels`: label maps."""

import typer

from maisi.cli.labels.check import check

labels = typer.Typer(help="Label maps: make, change and check them.", no_args_is_help=True)
labels.command()(check)
