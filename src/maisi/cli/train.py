"""`maisi train`: bundles from recipes."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, tell
from maisi.cli.options import Assignments

TOLD_EVERY = 50

train = typer.Typer(help="Train networks.", no_args_is_help=True)


@train.callback()
def _group() -> None:
    pass


@train.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Packaged recipe or YAML file.", show_default=False)],
    manifest: Annotated[Path, typer.Option(metavar="FILE", help="Manifest of the cases to train on.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; the bundle is inside.")],
    assignments: Assignments = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with.", show_default="one a core")] = None,
) -> None:
    """Train a whole bundle: autoencoder, latents, U-Net, ControlNet. Run it again after a kill: it goes on."""
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.recipes.load import load_recipe
    from maisi.recipes.recipe import BundleRecipe
    from maisi.runs.carry_out import carry_out
    from maisi.runs.task import Watch
    from maisi.runs.tasks.train import TRAIN, TrainRequest
    from maisi.storage.settings import check_settings, with_assignments

    settings = load_recipe(name).model_dump(mode="json")
    chosen = check_settings(BundleRecipe, with_assignments(settings, assignments or []))
    compute = {} if threads is None else {"threads": threads}
    asked = {"recipe": chosen.model_dump(mode="json"), "manifest": manifest, "compute": compute}
    request = check_settings(TrainRequest, asked)
    with process_for(Compute.model_validate(compute)):
        carry_out(TRAIN, request, out, watch=Watch(_teller()))
    give(str(out / "bundle"))


def _teller() -> Callable[[str, int, int], None]:
    def on_stage(stage: str, step: int, total: int) -> None:
        if step % TOLD_EVERY == 0 and total == 0:
            name, _, metrics = stage.partition(": ")
            tell(f"{name} {step}: {metrics}")

    return on_stage
