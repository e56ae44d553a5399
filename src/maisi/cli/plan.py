"""`maisi plan`: how the work on a volume would be cut to fit into memory."""

from typing import Annotated

import typer

from maisi.cli.console import give, give_json, give_table
from maisi.cli.options import AsJson, takes
from maisi.pipelines.requests import PlanRequest

PLACES = ("memory", "host", "disk", "recomputed")
"""What becomes of tensors that two passes over the rows need."""


@takes(PlanRequest, leave_out=("compute.ranks", "compute.threads"), config=False)
def plan(
    request: PlanRequest,
    train: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Show what a step of each training of a recipe needs instead.")
    ] = None,
    recipe_settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="A setting of the recipe of --train.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how encoding, sampling and decoding a volume would be cut to stay within an amount of memory.

    Nothing is computed, so the device need not be there. Give --size and --memory, or --train: then --size is that of
    the largest case, where the recipe takes cases whole.
    """
    from maisi.compute.compute import format_bytes
    from maisi.pipelines.plan import plan_all

    if train is not None:
        _plan_training(train, recipe_settings or [], request, as_json)
        return
    if recipe_settings:
        raise typer.BadParameter("--set is of the recipe that --train names")
    lacking = [f"--{name}" for name, said in (("size", request.size), ("memory", request.compute.memory)) if not said]
    if lacking:
        raise typer.BadParameter(f"missing {' and '.join(lacking)}")
    found = plan_all(request)
    if as_json:
        give_json(found.model_dump(mode="json"))
        return
    places = [place for place in PLACES if place != "host" or request.compute.host_memory]
    rows = [
        (
            name,
            "xyz"[p.axis],
            p.parts,
            format_bytes(p.peak_bytes),
            *(format_bytes(sum(t.num_bytes for t in p.tensors if t.place == place)) for place in places),
            f"{p.flops / 1e12:.3g}",
            f"{100 * p.overhead:.0f} %",
        )
        for name, p in found.plans.items()
    ]
    give_table(rows, ("", "axis", "slabs", "peak", *places, "TFLOP", "extra work"))
    give(f"{', '.join(places)}: where the tensors go that two passes over the rows share, not all at the same time")
    give(f"besides: {format_bytes(found.fixed_bytes)} for the process and the networks in {found.precision}")


def _plan_training(name: str, assignments: list[str], request: PlanRequest, as_json: bool) -> None:
    from maisi.bundle.bundle import load_bundle
    from maisi.compute.compute import format_bytes
    from maisi.recipes.load import read_recipe
    from maisi.recipes.memory import check_goes_before, largest_volume, training_memory
    from maisi.recipes.recipe import BundleRecipe
    from maisi.shapes import in_words
    from maisi.storage.settings import check_settings, with_assignments
    from maisi.training.memory import TRAINING_PROCESS_BYTES

    if request.compute.memory is not None:
        raise typer.BadParameter("--memory is what --train tells; `maisi train ... --memory` holds a training to it")
    recipe = check_settings(BundleRecipe, with_assignments(read_recipe(name), assignments))
    whole = [part for part in ("diffusion", "controlnet") if (of := getattr(recipe, part)) and not of.sizes]
    if request.size is not None and not whole:
        raise typer.BadParameter(f"--size is of recipes that take cases whole (sizes: []); {name} takes crops")
    is_whole = recipe.autoencoder is not None or (recipe.diffusion is None and recipe.controlnet is None)
    before = None if is_whole else load_bundle(request.bundle)
    if before is not None:
        check_goes_before(before, *(("autoencoder",) if recipe.diffusion is not None else ("autoencoder", "unet")))
    volume = request.size or largest_volume(recipe)
    found = training_memory(recipe, before=before, volume=volume)
    if as_json:
        give_json({part: {**memory.model_dump(), "total": memory.total} for part, memory in found.items()})
        return
    kinds = ("weights", "gradients", "moments", "averages", "activations")
    rows = [
        (part, memory.processes, *(format_bytes(getattr(memory, kind)) for kind in kinds), format_bytes(memory.total))
        for part, memory in found.items()
    ]
    give_table(rows, ("a step of", "processes", *kinds, "at most"))
    give(f"besides: {format_bytes(TRAINING_PROCESS_BYTES)} for the process, and volumes or latents that it keeps")
    if not is_whole:
        give(f"the networks that go before are those of bundle {request.bundle} (--bundle)")
    if whole:
        give(f"{', '.join(whole)}: takes cases whole, the largest of {in_words(volume)} voxels (--size)")
    give("at the largest patch or latent of the recipe, in float32; half precision takes about half of the activations")
    give("at most: gradients come as activations go; with what is computed again, and what libraries work in")
    if any(memory.processes > 1 for memory in found.values()):
        give(
            "in each of the processes that share the slabs of a step; one alone holds about what it does without slabs"
        )
