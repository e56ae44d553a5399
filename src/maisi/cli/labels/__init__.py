"""`maisi labels`: label maps."""

import typer

from maisi.cli.labels.library import library
from maisi.cli.labels.prepare import prepare

labels = typer.Typer(help="Label maps: make, change and check them.", no_args_is_help=True)
labels.command()(prepare)
labels.add_typer(library, name="library")
