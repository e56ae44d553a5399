"""`maisi train`: the networks of a bundle, one at a time or all of a recipe."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import Field

from maisi.anatomy.slots import full_volumes
from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.bundle.digest import weights_digest
from maisi.compute.compute import Compute, format_bytes
from maisi.compute.machine import fill_defaults, num_ranks
from maisi.data.latents import LATENTS, read_entries, read_extent
from maisi.data.manifest import check_cases, read_manifest
from maisi.errors import InvalidPlanError, InvalidRequestError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.pipelines.validate import lasting_name
from maisi.recipes.dry_run import DryRun, dry_run
from maisi.recipes.labels import LabelLesson, labels_stage
from maisi.recipes.load import with_classes
from maisi.recipes.memory import check_goes_before, training_memory
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.stages import (
    Encoded,
    Lesson,
    all_stages,
    autoencoder_stage,
    controlnet_stage,
    encoded,
    save_measured,
    segmenter_stage,
    segmenter_to_start_from,
    starting_bundle,
    stored_latents,
    unet_stage,
)
from maisi.recipes.variations import volumes_of
from maisi.runs.task import Checked, Output, Run, Task
from maisi.shapes import Frozen, Size3
from maisi.splitting.cpu.heap import freed_slabs
from maisi.storage.settings import check_settings
from maisi.training.autoencoder import check_autoencoder_training
from maisi.training.distributed import Team
from maisi.training.loop import found_device
from maisi.training.memory import TRAINING_PROCESS_BYTES, StepMemory
from maisi.training.optimization import Optimization
from maisi.training.pace import PACE, STEPS, spelled

LABEL_STEPS = ("label_autoencoder", "label_diffusion")
"""What `recipes.memory` calls the trainings of a label generator."""

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, Mapping[str, float]], None]
Stage = Callable[[Checked["TrainRequest"], Lesson, Path, OnStep | None], Bundle]
Check = Callable[["TrainRequest"], Checked["TrainRequest"]]
Work = Callable[[Checked["TrainRequest"], Run], None]


class TrainRequest(Frozen):
    """A recipe, the cases to train on, and the bundle whose networks go before."""

    recipe: BundleRecipe
    manifest: Path | None = Field(
        default=None, description="Manifest of the cases to train on, or the folder that `maisi prepare` made."
    )
    latents: Path | None = Field(default=None, description="Folder of latents that `maisi encode --manifest` made.")
    bundle: str | None = Field(default=None, description="Bundle whose networks go before: packaged name or folder.")
    compute: Compute = Compute()


def check(request: TrainRequest, *trained: str) -> Checked[TrainRequest]:
    """The request, its manifest read and its bundle found, if this machine can train what is trained."""
    if (request.manifest is None) == (request.latents is None):
        raise InvalidRequestError("a training needs cases: give either --manifest or --latents")
    bundle = None if request.bundle is None else load_bundle(request.bundle)
    _check_machine(request, trained, bundle)
    settings = with_classes(request.recipe.model_dump(mode="json"), request.bundle)
    update: dict[str, object] = {"recipe": check_settings(BundleRecipe, settings)}
    if request.manifest is not None:
        _check_cases(request.recipe, request.manifest)
        update["manifest"] = request.manifest.resolve()
    if request.latents is not None:
        read_entries(request.latents)
        update["latents"] = request.latents.resolve()
    return _filled_in(request.model_copy(update=update), bundle)


def _check_cases(recipe: BundleRecipe, manifest: Path) -> None:
    """Nothing, or the refusal of a manifest whose cases, of those that the recipe takes, cannot be trained on."""
    taken = [case for case in read_manifest(manifest) if recipe.shows(case) or recipe.latents.takes(case)]
    check_cases([case for case in taken if case.split != "testing"])


def _filled_in(request: TrainRequest, bundle: Bundle | None) -> Checked[TrainRequest]:
    """The request with its bundle, if it names one, and what it left open."""
    request = request.model_copy(update={"compute": fill_defaults(request.compute)})
    if request.bundle is None or bundle is None:
        return Checked(request)
    return Checked(request.model_copy(update={"bundle": lasting_name(request.bundle, bundle)}), bundle=bundle)


def _check_machine(request: TrainRequest, trained: Sequence[str], bundle: Bundle | None) -> None:
    """Nothing, or the refusal of a recipe whose devices are not there, or whose steps do not fit into its memory."""
    for part in trained:
        whole = request.recipe.for_labels() if part in LABEL_STEPS else request.recipe
        found_device(getattr(whole, part.removeprefix("label_")).device)
    _check_memory(request, trained, bundle)


def _check_memory(request: TrainRequest, trained: Sequence[str], bundle: Bundle | None) -> None:
    """Nothing, or the refusal of a recipe of which a step does not fit into the memory that it may have."""
    memory = request.compute.memory
    if memory is None:
        return
    part, needed = _largest_step(request, trained, bundle)
    least = needed.total + TRAINING_PROCESS_BYTES
    if least > memory:
        raise InvalidPlanError(
            f"a step of the {part.replace('_', ' ')} needs {format_bytes(needed.total)}, of which "
            f"{format_bytes(needed.activations)} for what the backward pass reads, and the process "
            f"{format_bytes(TRAINING_PROCESS_BYTES)}; they may take {format_bytes(memory)}; accepted: smaller patches "
            "or sizes, optimization.checkpoint_activations, optimization.slabs over processes, or "
            f"--memory {-(-least // 10**6)}MB or more",
            least,
        )


def memory_of_steps(request: TrainRequest, trained: Sequence[str], bundle: Bundle | None) -> dict[str, StepMemory]:
    """The memory of a step of each of the trainings, on the cases of the request."""
    return training_memory(request.recipe, num_ranks(), trained, bundle, largest_case(request, bundle))


def largest_case(request: TrainRequest, bundle: Bundle | None) -> Size3 | None:
    """The voxels of the largest case of which the latent may be taken whole; None where only the recipe bounds them."""
    sizes: list[Size3 | None] = []
    if request.latents is not None:
        found = None if bundle is None else bundle.configs.get("autoencoder")
        factor = found.factor if isinstance(found, AutoencoderConfig) else 1
        entries = [entry for entry in read_entries(request.latents) if entry.split != "testing"]
        extents = (read_extent(request.latents / entry.file) for entry in entries)
        sizes = [(x * factor, y * factor, z * factor) for x, y, z in extents]
    elif request.manifest is not None and request.recipe.latents.as_prepared:
        taken = (case for case in read_manifest(request.manifest) if request.recipe.latents.takes(case))
        sizes = [case.shape for case in taken if case.split != "testing"]
        sizes += [request.recipe.latents.max_size] * (request.recipe.latents.num_phantoms > 0)
    known = [size for size in sizes if size is not None]
    return max(known, key=math.prod) if known and len(known) == len(sizes) else None


def _largest_step(request: TrainRequest, trained: Sequence[str], bundle: Bundle | None) -> tuple[str, StepMemory]:
    return max(memory_of_steps(request, trained, bundle).items(), key=lambda named: named[1].total)


def _within_memory(checked: Checked[TrainRequest], trained: Sequence[str]) -> BundleRecipe:
    """The recipe, which keeps no more volumes and latents than its memory has room for beside a step."""
    recipe, memory = checked.request.recipe, checked.request.compute.memory
    if memory is None:
        return recipe
    room = memory - TRAINING_PROCESS_BYTES - _largest_step(checked.request, trained, checked.bundle)[1].total
    kept = {name: min(getattr(recipe, name), room) for name in ("kept_volume_bytes", "kept_latent_bytes")}
    return recipe.model_copy(update=kept)


def check_autoencoder(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how an autoencoder is trained."""
    _check_shares(request.recipe.for_autoencoder().optimization)
    if request.manifest is None:
        raise InvalidRequestError("an autoencoder learns from volumes; give --manifest")
    return _check_volumes(check(request, "autoencoder"))


def _check_volumes(checked: Checked[TrainRequest]) -> Checked[TrainRequest]:
    """The request, from whose cases its recipe can train an autoencoder to the end."""
    assert checked.request.manifest is not None
    lesson = Lesson.of(checked.request.recipe, checked.request.manifest)
    num_cases = sum(len(volumes) for _, volumes in volumes_of(lesson.recipe, lesson.training))
    config = lesson.recipe.for_autoencoder()
    check_autoencoder_training(config, num_cases, has_start=config.start_from is not None)
    return checked


def check_diffusion(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a U-Net is trained, and whose bundle has an autoencoder."""
    config = request.recipe.for_unet()
    _check_ranks(request, config.optimization)
    checked = _with_networks(check(request, "diffusion"), "autoencoder")
    starting_bundle(request.recipe, config, _before(checked), "unet")
    return checked


def check_controlnet(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a ControlNet is trained, and whose bundle has an autoencoder and a U-Net."""
    config = request.recipe.for_controlnet()
    _check_ranks(request, config.optimization)
    checked = _with_networks(check(request, "controlnet"), "autoencoder", "unet")
    starting_bundle(request.recipe, config, _before(checked), "controlnet")
    return checked


def _before(checked: Checked[TrainRequest]) -> Bundle:
    assert checked.bundle is not None, "the networks that go before were checked"
    return checked.bundle


def check_segmenter(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a segmenter is trained."""
    config = request.recipe.for_segmenter()
    Team(0, num_ranks()).parts(config.optimization.accumulate)
    if request.manifest is None:
        raise InvalidRequestError("a segmenter learns from volumes with labels; give --manifest")
    segmenter_to_start_from(config)
    return check(request, "segmenter")


def check_recipe(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how every network is trained."""
    if num_ranks() > 1:
        raise InvalidRequestError(
            "several processes train one network at a time; accepted: torchrun with `maisi train autoencoder`, then "
            "`maisi train diffusion` and `maisi train controlnet` with --latents of `maisi encode --manifest`, or "
            "`maisi train recipe` without torchrun"
        )
    if request.manifest is None:
        raise InvalidRequestError("a whole recipe starts from volumes; give --manifest")
    for part in (request.recipe.for_autoencoder, request.recipe.for_unet, request.recipe.for_controlnet):
        part()
    return _check_volumes(check(request, *parts_of("recipe", request.recipe)))


def _check_ranks(request: TrainRequest, optimization: Optimization) -> None:
    """Raise `InvalidRequestError` where several processes cannot share the work."""
    _check_shares(optimization)
    if num_ranks() > 1 and request.latents is None:
        raise InvalidRequestError(
            "several processes learn from latents that are there; give --latents of `maisi encode --manifest`"
        )


def _check_shares(optimization: Optimization) -> None:
    """Raise `InvalidRequestError` where there are no slabs, or no batches, for every process."""
    if optimization.slabs == 1:
        Team(0, num_ranks()).parts(optimization.accumulate)
    elif optimization.slabs < num_ranks():
        raise InvalidRequestError(
            f"{num_ranks()} processes cannot share {optimization.slabs} slabs; accepted: slabs {num_ranks()} or more"
        )


def _with_networks(checked: Checked[TrainRequest], *needed: str) -> Checked[TrainRequest]:
    if checked.bundle is None:
        raise InvalidRequestError(f"this training needs a bundle with {' and '.join(needed)}; give --bundle")
    check_goes_before(checked.bundle, *needed)
    return checked


def inputs(request: TrainRequest) -> tuple[Path, ...]:
    """The manifest, or the index of the latents."""
    named = request.manifest if request.latents is None else request.latents / LATENTS
    return (named,) if named is not None and named.is_file() else ()


def autoencoder_of(checked: Checked[TrainRequest], lesson: Lesson, folder: Path, on_step: OnStep | None) -> Bundle:
    """The bundle of an autoencoder, its state in the folder."""
    return autoencoder_stage(lesson, folder, on_step)


def unet_of(checked: Checked[TrainRequest], lesson: Lesson, folder: Path, on_step: OnStep | None) -> Bundle:
    """The bundle given, with a U-Net."""
    assert checked.bundle is not None
    latents = _latents(checked.request, lesson, checked.bundle, folder)
    return unet_stage(lesson, checked.bundle, latents, folder, on_step)


def controlnet_of(checked: Checked[TrainRequest], lesson: Lesson, folder: Path, on_step: OnStep | None) -> Bundle:
    """The bundle given, with a ControlNet."""
    assert checked.bundle is not None
    latents = _latents(checked.request, lesson, checked.bundle, folder)
    return controlnet_stage(lesson, checked.bundle, latents, folder, on_step)


def segmenter_of(checked: Checked[TrainRequest], lesson: Lesson, folder: Path, on_step: OnStep | None) -> Bundle:
    """The bundle given with a segmenter, or one of the segmenter alone."""
    return segmenter_stage(lesson, checked.bundle, folder, on_step)


def whole_of(checked: Checked[TrainRequest], lesson: Lesson, folder: Path, on_step: OnStep | None) -> Bundle:
    """The bundle of all networks of a recipe, not measured yet."""
    return all_stages(lesson, folder, on_step)


def train_autoencoder(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle of an autoencoder in `bundle`; its state beside it."""
    _train(checked, run, "autoencoder")


def train_unet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a U-Net, in `bundle`."""
    _train(checked, run, "diffusion")


def train_controlnet(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, with a ControlNet, in `bundle`."""
    _train(checked, run, "controlnet")


def train_segmenter(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given with a segmenter, or one of the segmenter alone, in `bundle`."""
    _train(checked, run, "segmenter")


def train_recipe(checked: Checked[TrainRequest], run: Run) -> None:
    """The whole bundle, measured, in `bundle`."""
    _train(checked, run, "recipe", is_measured=True)


def try_out(checked: Checked[TrainRequest], part: str) -> DryRun:
    """A few steps of a part of `STAGES`, thrown away."""
    stage, lesson = STAGES[part], _lesson(checked, parts_of(part, checked.request.recipe))
    with _freed(checked.request):
        return dry_run(lesson, lambda few, folder: stage(checked, few, folder, None))


def parts_of(part: str, recipe: BundleRecipe) -> tuple[str, ...]:
    """The trainings that a part of `STAGES` stands for."""
    networks = ("autoencoder", "diffusion", "controlnet", "segmenter")
    return tuple(name for name in networks if getattr(recipe, name) is not None) if part == "recipe" else (part,)


def _freed(request: TrainRequest) -> AbstractContextManager[None]:
    """Memory that a step frees goes back to the system where there is a bound; else the next step is faster with it."""
    return nullcontext() if request.compute.memory is None else freed_slabs(kept=False)


def _latents(request: TrainRequest, lesson: Lesson, bundle: Bundle, folder: Path) -> Encoded:
    """Latents that are there already, made by the bundle's autoencoder, or variations of the cases, encoded now."""
    if request.latents is None:
        return encoded(lesson, bundle, folder / "latents")
    entries, weights = read_entries(request.latents), weights_digest(bundle.autoencoder.state_dict())
    foreign = [entry.id for entry in entries if entry.autoencoder not in (weights, "")]
    if foreign:
        raise InvalidRequestError(
            f"{request.latents} holds latents of another autoencoder than that of bundle {bundle.name}, such as "
            f"{foreign[0]}; accepted: latents of `maisi encode --manifest ... --bundle` with this bundle"
        )
    if any(not entry.autoencoder for entry in entries):
        logger.warning("%s: some latents do not say which autoencoder made them; taken as this one's", request.latents)
    return stored_latents(request.latents, entries, lesson.recipe.kept_latent_bytes)


def _lesson(checked: Checked[TrainRequest], trained: Sequence[str]) -> Lesson:
    recipe, manifest = _within_memory(checked, trained), checked.request.manifest
    return Lesson(recipe, ()) if manifest is None else Lesson.of(recipe, manifest)


def telling(run: Run) -> OnStep:
    """Tells whoever watches a run of its steps: "NAME: pace, numbers", the steps done, the steps in all."""

    def on_step(name: str, step: int, metrics: Mapping[str, float]) -> None:
        numbers = [f"{key} {value:.4g}" for key, value in metrics.items() if key not in PACE]
        said = ", ".join(filter(None, [spelled(metrics), *numbers]))
        run.watch.on_stage(f"{name}: {said}", step, int(metrics.get(STEPS, 0)))

    return on_step


def _train(checked: Checked[TrainRequest], run: Run, part: str, is_measured: bool = False) -> None:
    """Work in the folder itself, where every stage leaves its state."""
    run.publish()  # the settings, by which a later run knows that it goes on
    if run.ranks is not None:
        run.ranks.wait()  # nobody goes on from what the first has just removed
    lesson = _lesson(checked, parts_of(part, checked.request.recipe))
    with _freed(checked.request):
        bundle = STAGES[part](checked, lesson, run.folder, telling(run))
    run.on_stage("train", 1, 1)
    if is_measured:
        path = save_measured(bundle, lesson, run.folder)
    elif run.writes:
        path = save_bundle(bundle, run.folder / "bundle", overwrite=True)
    else:
        path = run.folder / "bundle"
    run.outputs |= {file for file in path.rglob("*") if file.is_file()}


def check_labels(request: TrainRequest) -> Checked[TrainRequest]:
    """The request, whose recipe says how a label generator is trained; without a manifest it learns from phantoms."""
    recipe = request.recipe.for_labels()
    if num_ranks() > 1:
        raise InvalidRequestError("a label generator is trained by one process; start it without torchrun")
    if request.latents is not None:
        raise InvalidRequestError("a label generator learns from label maps; give --manifest")
    diffusion = recipe.diffusion
    for name, value in (("start_from", diffusion.start_from), ("loop.validate_every", diffusion.loop.validate_every)):
        if value:
            raise InvalidRequestError(f"labels.diffusion.{name} is not heeded by a label generator; leave it out")
    network, num_slots = recipe.diffusion.network, len(full_volumes())
    if network is None or network.context_channels != num_slots:
        raise InvalidRequestError(
            f"labels.diffusion.network of recipe {request.recipe.name} must have context_channels {num_slots}, a "
            "number for each structure of anatomy/slots.yaml"
        )
    if request.manifest is None and not recipe.maps.num_phantoms:
        raise InvalidRequestError("nothing to learn from; accepted: --manifest, or labels.maps.num_phantoms above 0")
    if request.manifest is not None:
        return check(request, *LABEL_STEPS)
    _check_machine(request, LABEL_STEPS, None)
    return _filled_in(request, None if request.bundle is None else load_bundle(request.bundle))


def train_labels(checked: Checked[TrainRequest], run: Run) -> None:
    """The bundle given, or a new one, with a label generator, in `bundle`; states beside it."""
    run.publish()
    told = telling(run)

    def on_part(name: str) -> Callable[[int, Mapping[str, float]], None]:
        return partial(told, name)

    request = checked.request
    with _freed(request):
        bundle = labels_stage(LabelLesson.of(request.recipe, request.manifest), checked.bundle, run.folder, on_part)
    run.on_stage("train", 1, 1)
    path = save_bundle(bundle, run.folder / "bundle", dtype=torch.float16, overwrite=True)
    run.outputs |= {file for file in path.rglob("*") if file.is_file()}


STAGES: dict[str, Stage] = {
    "autoencoder": autoencoder_of,
    "diffusion": unet_of,
    "controlnet": controlnet_of,
    "segmenter": segmenter_of,
    "recipe": whole_of,
}
"""What is trained, by the last word of the command."""

STATES = {
    "autoencoder": ("autoencoder",),
    "diffusion": ("diffusion",),
    "controlnet": ("controlnet",),
    "segmenter": ("segmenter",),
    "recipe": ("autoencoder", "segmenter", "diffusion", "controlnet", "quality.json"),
    "labels": ("maps", "label_autoencoder", "label_latents", "label_diffusion"),
}
"""What a training goes on from, by the last word of the command, besides latents that it made itself."""


@dataclass(frozen=True)
class StateOf:
    """What a training leaves, by the last word of its command; it can be sent to another process and is equal there."""

    part: str

    def __call__(self, request: TrainRequest) -> tuple[str, ...]:
        encodes = self.part in ("diffusion", "controlnet", "recipe") and request.latents is None
        return (*STATES[self.part], "latents") if encodes else STATES[self.part]


def _task(part: str, check: Check, work: Work, on_ranks: bool = False) -> Task[TrainRequest]:
    state = StateOf(part)
    return Task(f"train {part}", TrainRequest, check, work, inputs, Output.STATE, on_ranks=on_ranks, state=state)


AUTOENCODER = _task("autoencoder", check_autoencoder, train_autoencoder, on_ranks=True)
DIFFUSION = _task("diffusion", check_diffusion, train_unet, on_ranks=True)
CONTROLNET = _task("controlnet", check_controlnet, train_controlnet, on_ranks=True)
SEGMENTER = _task("segmenter", check_segmenter, train_segmenter, on_ranks=True)
RECIPE = _task("recipe", check_recipe, train_recipe)
LABELS = _task("labels", check_labels, train_labels)
