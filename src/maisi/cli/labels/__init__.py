"""`maisi labels`: label maps made, changed and looked at."""

import typer

from maisi.cli.labels.augment import augment
from maisi.cli.labels.check import check
from maisi.cli.labels.generate import generate
from maisi.cli.labels.library import library
from maisi.cli.labels.prepare import prepare
from maisi.cli.labels.register import register

labels = typer.Typer(help="Label maps: made, changed and looked at.", no_args_is_help=True)


@labels.callback()
def _group() -> None:
    pass


for _command in (generate, augment, prepare, register, check):
    labels.command()(_command)
labels.add_typer(library, name="library")
