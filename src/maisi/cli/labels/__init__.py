"""`maisi labels`: label maps made, changed and looked at."""

import typer

from maisi.cli.labels.augment import labels_augment
from maisi.cli.labels.register import register

labels = typer.Typer(help="Label maps: made, changed and looked at.", no_args_is_help=True)


@labels.callback()
def _group() -> None:
    pass


labels.command("augment")(labels_augment)
labels.command()(register)
