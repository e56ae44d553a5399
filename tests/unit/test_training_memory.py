"""For which cases the memory of a step is counted."""

from pathlib import Path

import torch

from maisi.bundle.bundle import load_bundle
from maisi.data.latents import LATENTS, Latent, LatentEntry, write_entries, write_latent
from maisi.data.manifest import Case, write_manifest
from maisi.recipes.load import load_recipe
from maisi.recipes.memory import largest_volume, training_memory
from maisi.recipes.recipe import BundleRecipe
from maisi.runs.tasks.train import TrainRequest, largest_case
from maisi.shapes import Size3
from maisi.space.grid import Grid

SHAPES: dict[str, Size3 | None] = {"a": (64, 64, 64), "b": (64, 64, 96), "c": (128, 128, 128)}


def manifest(folder: Path, shapes: dict[str, Size3 | None]) -> Path:
    """Cases of these shapes, of which c is for testing."""
    cases = [
        Case(id=id, image=folder / f"{id}.nii.gz", shape=shape, split="testing" if id == "c" else "training")
        for id, shape in shapes.items()
    ]
    write_manifest(cases, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def changed(recipe: BundleRecipe, **latents: object) -> BundleRecipe:
    return recipe.model_copy(update={"latents": recipe.latents.model_copy(update=latents)})


def test_cases_that_are_taken_as_they_are_tell_the_largest(tmp_path: Path) -> None:
    path = manifest(tmp_path, SHAPES)
    recipe = load_recipe("inpaint")
    assert largest_case(TrainRequest(recipe=recipe, manifest=path), None) == (64, 64, 96)
    without = changed(recipe, exclude=("b",))
    assert largest_case(TrainRequest(recipe=without, manifest=path), None) == (64, 64, 64)
    with_phantoms = changed(recipe, num_phantoms=1, max_size=(96, 96, 96))
    assert largest_case(TrainRequest(recipe=with_phantoms, manifest=path), None) == (96, 96, 96)


def test_the_recipe_alone_tells_it_where_cases_do_not(tmp_path: Path) -> None:
    inpaint, tiny = load_recipe("inpaint"), load_recipe("tiny")
    silent = manifest(tmp_path, {**SHAPES, "d": None})
    assert largest_case(TrainRequest(recipe=inpaint, manifest=silent), None) is None
    assert largest_volume(inpaint) == inpaint.limits.max_size
    varied = manifest(tmp_path, SHAPES)
    assert largest_case(TrainRequest(recipe=tiny, manifest=varied), None) is None  # variations are drawn
    assert largest_volume(tiny) == tiny.latents.max_size != tiny.limits.max_size


def test_latents_that_are_there_tell_it_by_their_heads(tmp_path: Path) -> None:
    bundle, entries = load_bundle("ct-small"), []
    for id, z in (("a", 8), ("b", 16), ("c", 32)):
        values, grid = torch.zeros(1, 4, 8, 8, z), Grid.centered((16, 16, 2 * z), (4.0, 4.0, 4.0))
        write_latent(Latent(values, values.clone(), grid), tmp_path / f"{id}.safetensors")
        split = "testing" if id == "c" else "training"
        entries.append(LatentEntry(id=id, file=f"{id}.safetensors", sha256="", split=split))
    write_entries(entries, tmp_path / LATENTS)
    request = TrainRequest(recipe=load_recipe("inpaint"), latents=tmp_path)
    assert largest_case(request, bundle) == (16, 16, 32)


def test_a_step_on_whole_cases_takes_what_the_largest_needs() -> None:
    recipe = load_recipe("tiny")
    assert recipe.diffusion is not None
    whole = recipe.model_copy(update={"diffusion": recipe.diffusion.model_copy(update={"sizes": ()})})
    small, large = (
        training_memory(whole, parts=("diffusion",), volume=volume)["diffusion"].activations
        for volume in ((32, 32, 32), (32, 32, 64))
    )
    assert large > 1.9 * small
    odd = training_memory(whole, parts=("diffusion",), volume=(31, 29, 61))["diffusion"].activations
    assert odd == large  # to sizes of the U-Net
