"""`maisi train recipe`: a whole bundle from a recipe and a manifest."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from maisi.compute.compute import Compute
from maisi.compute.machine import fill_defaults
from maisi.data.manifest import read_manifest
from maisi.recipes.recipe import BundleRecipe, build_bundle
from maisi.runs.task import Checked, Output, Run, Task
from maisi.shapes import Frozen


class TrainRequest(Frozen):
    """A recipe, and the cases to train on."""

    recipe: BundleRecipe
    manifest: Path = Field(description="Manifest of the cases to train on.")
    compute: Compute = Compute()


def check(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, its manifest read."""
    read_manifest(request.manifest)
    update = {"manifest": request.manifest.resolve(), "compute": fill_defaults(request.compute)}
    return Checked(request.model_copy(update=update))


def inputs(request: TrainRequest) -> tuple[Path, ...]:
    """The manifest."""
    return (request.manifest,)


def work(checked: Checked[TrainRequest], run: Run) -> None:
    """Train in the folder itself, where every stage leaves its state; the bundle is in `bundle`."""
    run.publish()  # the settings, by which a later run knows that it goes on
    recipe = checked.request.recipe

    def on_step(stage: str, step: int, metrics: Mapping[str, float]) -> None:
        run.watch.on_stage(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()), step, 0)

    bundle = build_bundle(recipe, checked.request.manifest, run.folder, on_step)
    run.on_stage("train", 1, 1)
    run.outputs |= {file for file in bundle.rglob("*") if file.is_file()}


TRAIN = Task("train recipe", TrainRequest, check, work, inputs, Output.STATE)
