"""`maisi train`: the networks of a bundle, one at a time or all of a recipe."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.compute.compute import Compute
from maisi.compute.machine import fill_defaults, num_ranks
from maisi.data.latents import LATENTS, read_entries
from maisi.data.manifest import read_manifest
from maisi.errors import InvalidRequestError
from maisi.pipelines.validate import lasting_name
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.stages import (
    Encoded,
    Lesson,
    autoencoder_stage,
    build_bundle,
    controlnet_stage,
    encoded,
    starting_bundle,
    stored_latents,
    unet_stage,
)
from maisi.runs.task import Checked, Output, Run, Task
from maisi.runs.tasks.encode_cases import weights_sum
from maisi.shapes import Frozen
from maisi.training.distributed import Team
from maisi.training.optimization import Optimization

OnStep = Callable[[str, int, Mapping[str, float]], None]


class TrainRequest(Frozen):
    """A recipe, the cases to train on, and the bundle whose networks go before."""

    recipe: BundleRecipe
    manifest: Path | None = Field(
        default=None, description="Manifest of the cases to train on, or the folder that `maisi prepare` made."
    )
    latents: Path | None = Field(default=None, description="Folder of latents that `maisi encode --manifest` made.")
    bundle: str | None = Field(default=None, description="Bundle whose networks go before: packaged name or folder.")
    compute: Compute = Compute()


def check(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, its manifest read and its bundle found."""
    if (request.manifest is None) == (request.latents is None):
        raise InvalidRequestError("a training needs cases: give either --manifest or --latents")
    update: dict[str, object] = {"compute": fill_defaults(request.compute)}
    if request.manifest is not None:
        read_manifest(request.manifest)
        update["manifest"] = request.manifest.resolve()
    if request.latents is not None:
        read_entries(request.latents)
        update["latents"] = request.latents.resolve()
    if request.bundle is None:
        return Checked(request.model_copy(update=update))
    bundle = load_bundle(request.bundle)
    return Checked(request.model_copy(update=update | {"bundle": lasting_name(request.bundle, bundle)}), bundle=bundle)


def check_autoencoder(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how an autoencoder is trained; one of its bundle is trained on."""
    Team(0, num_ranks()).parts(request.recipe.for_autoencoder().optimization.accumulate)
    if request.manifest is None:
        raise InvalidRequestError("an autoencoder learns from volumes; give --manifest")
    return _with_networks(check(request), "autoencoder") if request.bundle is not None else check(request)


def check_diffusion(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a U-Net is trained, and whose bundle has an autoencoder."""
    config = request.recipe.for_unet()
    _check_ranks(request, config.optimization)
    checked = _with_networks(check(request), "autoencoder")
    starting_bundle(request.recipe, config, _before(checked), "unet")
    return checked


def check_controlnet(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a ControlNet is trained, and whose bundle has an autoencoder and a U-Net."""
    config = request.recipe.for_controlnet()
    _check_ranks(request, config.optimization)
    checked = _with_networks(check(request), "autoencoder", "unet")
    starting_bundle(request.recipe, config, _before(checked), "controlnet")
    return checked


def _before(checked: Checked[TrainRequest]) -> Bundle:
    assert checked.bundle is not None, "the networks that go before were checked"
    return checked.bundle


def check_recipe(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how every network is trained."""
    if num_ranks() > 1:
        raise InvalidRequestError(
            "several processes train one network at a time; accepted: autoencoder, diffusion, controlnet"
        )
    if request.manifest is None:
        raise InvalidRequestError("a whole recipe starts from volumes; give --manifest")
    for part in (request.recipe.for_autoencoder, request.recipe.for_unet, request.recipe.for_controlnet):
        part()
    return check(request)


def _check_ranks(request: TrainRequest, optimization: Optimization) -> None:
    """Raise `InvalidRequestError` where several processes cannot share the work."""
    Team(0, num_ranks()).parts(optimization.accumulate)
    if num_ranks() > 1 and request.latents is None:
        raise InvalidRequestError(
            "several processes learn from latents that are there; give --latents of `maisi encode --manifest`"
        )


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
    """The manifest, or the index of the latents."""
    named = request.manifest if request.latents is None else request.latents / LATENTS
    return (named,) if named is not None and named.is_file() else ()


def train_autoencoder(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle of an autoencoder in `bundle`; its state beside it."""
    start = checked.bundle
    _train(checked, run, lambda lesson, on_step: _saved(autoencoder_stage(lesson, run.folder, on_step, start), run))


def train_unet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a U-Net, in `bundle`."""
    bundle = _before(checked)

    def work(lesson: Lesson, on_step: OnStep) -> Path:
        latents = _latents(checked.request, lesson, bundle, run)
        return _saved(unet_stage(lesson, bundle, latents, run.folder, on_step), run)

    _train(checked, run, work)


def train_controlnet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a ControlNet, in `bundle`."""
    bundle = _before(checked)

    def work(lesson: Lesson, on_step: OnStep) -> Path:
        latents = _latents(checked.request, lesson, bundle, run)
        return _saved(controlnet_stage(lesson, bundle, latents, run.folder, on_step), run)

    _train(checked, run, work)


def _latents(request: TrainRequest, lesson: Lesson, bundle: Bundle, run: Run) -> Encoded:
    """Latents that are there already, made by the bundle's autoencoder, or variations of the cases, encoded now."""
    if request.latents is None:
        return encoded(lesson, bundle, run.folder / "latents")
    entries, weights = read_entries(request.latents), weights_sum(bundle)
    foreign = [entry.id for entry in entries if entry.autoencoder != weights]
    if foreign:
        raise InvalidRequestError(
            f"{request.latents} holds latents of another autoencoder than that of bundle {bundle.name}, such as "
            f"{foreign[0]}; accepted: latents of `maisi encode --manifest ... --bundle` with this bundle"
        )
    return stored_latents(request.latents, entries, lesson.recipe.kept_latent_bytes)


def train_recipe(checked: Checked[TrainRequest], run: Run) -> None:
    """The whole bundle, measured, in `bundle`."""
    _train(checked, run, lambda lesson, on_step: build_bundle(lesson, run.folder, on_step))


def _train(checked: Checked[TrainRequest], run: Run, work: Callable[[Lesson, OnStep], Path]) -> None:
    """Work in the folder itself, where every stage leaves its state."""
    run.publish()  # the settings, by which a later run knows that it goes on

    def on_step(stage: str, step: int, metrics: Mapping[str, float]) -> None:
        run.watch.on_stage(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()), step, 0)

    recipe, manifest = checked.request.recipe, checked.request.manifest
    bundle = work(Lesson(recipe, ()) if manifest is None else Lesson.of(recipe, manifest), on_step)
    run.on_stage("train", 1, 1)
    run.outputs |= {file for file in bundle.rglob("*") if file.is_file()}


def _saved(bundle: Bundle, run: Run) -> Path:
    path = run.folder / "bundle"
    return save_bundle(bundle, path, overwrite=True) if run.writes else path


AUTOENCODER = Task(
    "train autoencoder", TrainRequest, check_autoencoder, train_autoencoder, inputs, Output.STATE, on_ranks=True
)
DIFFUSION = Task("train diffusion", TrainRequest, check_diffusion, train_unet, inputs, Output.STATE, on_ranks=True)
CONTROLNET = Task(
    "train controlnet", TrainRequest, check_controlnet, train_controlnet, inputs, Output.STATE, on_ranks=True
)
RECIPE = Task("train recipe", TrainRequest, check_recipe, train_recipe, inputs, Output.STATE)
