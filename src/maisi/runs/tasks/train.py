"""`maisi train`: the networks of a bundle, one at a time or all of a recipe."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.compute.compute import Compute
from maisi.compute.machine import fill_defaults
from maisi.data.manifest import read_manifest
from maisi.errors import InvalidRequestError
from maisi.pipelines.validate import lasting_name
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.stages import (
    Lesson,
    autoencoder_stage,
    build_bundle,
    controlnet_stage,
    encoded,
    starting_bundle,
    unet_stage,
)
from maisi.runs.task import Checked, Output, Run, Task
from maisi.shapes import Frozen

OnStep = Callable[[str, int, Mapping[str, float]], None]


class TrainRequest(Frozen):
    """A recipe, the cases to train on, and the bundle whose networks go before."""

    recipe: BundleRecipe
    manifest: Path = Field(description="Manifest of the cases to train on, or the folder that `maisi prepare` made.")
    bundle: str | None = Field(default=None, description="Bundle whose networks go before: packaged name or folder.")
    compute: Compute = Compute()


def check(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, its manifest read and its bundle found."""
    read_manifest(request.manifest)
    update = {"manifest": request.manifest.resolve(), "compute": fill_defaults(request.compute)}
    if request.bundle is None:
        return Checked(request.model_copy(update=update))
    bundle = load_bundle(request.bundle)
    return Checked(request.model_copy(update=update | {"bundle": lasting_name(request.bundle, bundle)}), bundle=bundle)


def check_autoencoder(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how an autoencoder is trained; one of its bundle is trained on."""
    request.recipe.for_autoencoder()
    return _with_networks(check(request), "autoencoder") if request.bundle is not None else check(request)


def check_diffusion(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a U-Net is trained, and whose bundle has an autoencoder."""
    config = request.recipe.for_unet()
    checked = _with_networks(check(request), "autoencoder")
    starting_bundle(request.recipe, config, _before(checked), "unet")
    return checked


def check_controlnet(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a ControlNet is trained, and whose bundle has an autoencoder and a U-Net."""
    config = request.recipe.for_controlnet()
    checked = _with_networks(check(request), "autoencoder", "unet")
    starting_bundle(request.recipe, config, _before(checked), "controlnet")
    return checked


def _before(checked: Checked[TrainRequest]) -> Bundle:
    assert checked.bundle is not None, "the networks that go before were checked"
    return checked.bundle


def _with_networks(checked: Checked[TrainRequest], *needed: str) -> Checked[TrainRequest]:
    if checked.bundle is None:
        raise InvalidRequestError(f"this training needs a bundle with {' and '.join(needed)}; give --bundle")
    lacking = [name for name in needed if name not in checked.bundle.names]
    if lacking:
        there = ", ".join(checked.bundle.names)
        raise InvalidRequestError(
            f"bundle {checked.bundle.name} has no {lacking[0]}, which goes before; it has {there}"
        )
    return checked


def inputs(request: TrainRequest) -> tuple[Path, ...]:
    """The manifest."""
    return (request.manifest,) if request.manifest.is_file() else ()


def train_autoencoder(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle of an autoencoder in `bundle`; its state beside it."""
    start = checked.bundle
    _train(checked, run, lambda lesson, on_step: _saved(autoencoder_stage(lesson, run.folder, on_step, start), run))


def train_unet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a U-Net, in `bundle`."""
    bundle = _before(checked)

    def work(lesson: Lesson, on_step: OnStep) -> Path:
        latents = encoded(lesson, bundle, run.folder / "latents")
        return _saved(unet_stage(lesson, bundle, latents, run.folder, on_step), run)

    _train(checked, run, work)


def train_controlnet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a ControlNet, in `bundle`."""
    bundle = _before(checked)

    def work(lesson: Lesson, on_step: OnStep) -> Path:
        latents = encoded(lesson, bundle, run.folder / "latents")
        return _saved(controlnet_stage(lesson, bundle, latents, run.folder, on_step), run)

    _train(checked, run, work)


def train_recipe(checked: Checked[TrainRequest], run: Run) -> None:
    """The whole bundle, measured, in `bundle`."""
    _train(checked, run, lambda lesson, on_step: build_bundle(lesson, run.folder, on_step))


def _train(checked: Checked[TrainRequest], run: Run, work: Callable[[Lesson, OnStep], Path]) -> None:
    """Work in the folder itself, where every stage leaves its state."""
    run.publish()  # the settings, by which a later run knows that it goes on

    def on_step(stage: str, step: int, metrics: Mapping[str, float]) -> None:
        run.watch.on_stage(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()), step, 0)

    bundle = work(Lesson.of(checked.request.recipe, checked.request.manifest), on_step)
    run.on_stage("train", 1, 1)
    run.outputs |= {file for file in bundle.rglob("*") if file.is_file()}


def _saved(bundle: Bundle, run: Run) -> Path:
    return save_bundle(bundle, run.folder / "bundle", overwrite=True)


AUTOENCODER = Task("train autoencoder", TrainRequest, check_autoencoder, train_autoencoder, inputs, Output.STATE)
DIFFUSION = Task("train diffusion", TrainRequest, check_diffusion, train_unet, inputs, Output.STATE)
CONTROLNET = Task("train controlnet", TrainRequest, check_controlnet, train_controlnet, inputs, Output.STATE)
RECIPE = Task("train recipe", TrainRequest, check, train_recipe, inputs, Output.STATE)
