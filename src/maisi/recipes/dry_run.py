"""A few steps of a training, thrown away: whether recipe, data and machine go together, and how long it will take."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from maisi.data.manifest import Case
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.stages import Lesson
from maisi.shapes import Frozen
from maisi.training.autoencoder import AutoencoderTraining
from maisi.training.loop import METRICS, LoopConfig

STEPS, CASES = 3, 2


class Tried(Frozen):
    """What the steps of one training took, and what all of them will."""

    part: str
    steps: int | None  # of the whole run, None where it depends on the number of cases
    seconds_a_step: float
    losses: dict[str, float]

    @property
    def hours(self) -> float | None:
        """Of all steps, at the speed of those tried; validation and encoding come on top."""
        return None if self.steps is None else self.steps * self.seconds_a_step / 3600


class DryRun(Frozen):
    """What a few steps have shown."""

    seconds: float
    resident_bytes: int  # of the process afterwards
    cases: int
    parts: tuple[Tried, ...]


def dry_run(lesson: Lesson, work: Callable[[Lesson, Path], object]) -> DryRun:
    """Carry out `work` on the first cases for a few steps in a folder that is removed; errors are those of the run."""
    started = time.perf_counter()
    few = replace(lesson, recipe=_short(lesson.recipe), training=_few(lesson), validation=())
    with tempfile.TemporaryDirectory(prefix="maisi-") as name:
        folder = Path(name)
        work(few, folder)
        tried = tuple(_tried(part, folder, lesson) for part in _PARTS if (folder / part / METRICS).is_file())
    resident = psutil.Process().memory_info().rss
    return DryRun(
        seconds=round(time.perf_counter() - started, 1),
        resident_bytes=resident,
        cases=len(lesson.training),
        parts=tried,
    )


_PARTS = ("autoencoder", "diffusion", "controlnet", "segmenter")


def _few(lesson: Lesson) -> tuple[Case, ...]:
    """The first cases that each network learns from."""
    recipe = lesson.recipe
    shown = [case for case in lesson.training if recipe.shows(case)][:CASES]
    encoded = [case for case in lesson.training if recipe.latents.takes(case)][:CASES]
    return tuple({case.id: case for case in (*shown, *encoded)}.values()) or lesson.training[:CASES]


def _short(recipe: BundleRecipe) -> BundleRecipe:
    """The recipe with few steps, one variation a case and one phantom at most."""
    loop = LoopConfig(num_steps=STEPS, save_every=STEPS)
    update: dict[str, Any] = {}
    for part in _PARTS:
        config = getattr(recipe, part)
        if config is not None:
            update[part] = config.model_copy(update={"loop": loop.model_copy(update={"seed": config.loop.seed})})
    if recipe.autoencoder is not None:
        update["autoencoder"] = update["autoencoder"].model_copy(update=_all_of(recipe.autoencoder))
    latents = recipe.latents
    fewer = {group: min(1, count) for group, count in latents.variations.items()}
    phantoms = min(1, latents.num_phantoms)
    update["latents"] = latents.model_copy(update={"variations": fewer, "num_phantoms": phantoms})
    return recipe.model_copy(update=update)


def _all_of(config: AutoencoderTraining) -> dict[str, Any]:
    """What lets few steps show all that a run does: small patches, large ones, the critic, a frozen encoder."""
    share = config.early_share if config.early_share in (0, 1) else 1 / STEPS
    frozen = config.decoder_only_after
    return {
        "early_share": share,
        "adversarial_start": min(config.adversarial_start, 1),
        "decoder_only_after": None if frozen is None else min(frozen, STEPS - 1),
    }


def _tried(part: str, folder: Path, lesson: Lesson) -> Tried:
    lines = [json.loads(line) for line in (folder / part / METRICS).read_text().splitlines()]
    last = {name: value for name, value in lines[-1].items() if name not in ("step", "seconds", "learning_rate")}
    config = getattr(lesson.recipe, part)
    loop: LoopConfig = config.loop
    if part in ("autoencoder", "segmenter"):
        loop = loop.counted(len(lesson.training), config.batch_size * config.optimization.accumulate)
    seconds = median(line["seconds"] for line in lines[1:])  # the first one warms up
    return Tried(part=part, steps=loop.num_steps, seconds_a_step=seconds, losses=last)
