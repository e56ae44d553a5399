"""`maisi train`: bundles from recipes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, tell
from maisi.cli.options import Assignments, Threads

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
    threads: Threads = None,
) -> None:
    """Train a whole bundle: autoencoder, latents, U-Net, ControlNet. Run it again after a kill: it goes on."""
    import torch

    from maisi.errors import InvalidRequestError
    from maisi.pipelines.settings import assigned, checked, read_settings, write_settings
    from maisi.recipes.bundle import BundleRecipe, build_bundle
    from maisi.recipes.load import load_recipe

    settings = load_recipe(name).model_dump(mode="json")
    chosen = checked(BundleRecipe, assigned(settings, assignments or []))
    settings, kept = chosen.model_dump(mode="json"), out / "recipe.yaml"
    if not manifest.is_file():
        raise InvalidRequestError(f"no manifest at {manifest}")
    if kept.exists() and read_settings(kept) != settings:
        raise InvalidRequestError(f"{out} holds a run of another recipe; accepted: another folder, or that recipe")
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    write_settings(kept, settings)
    give(str(build_bundle(chosen, manifest, out, _teller())))


def _teller() -> Callable[[str, int, Mapping[str, float]], None]:
    def on_step(stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if step % TOLD_EVERY == 0:
            tell(f"{stage} {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    return on_step
