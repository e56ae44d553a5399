"""`maisi train`: the networks of a bundle, one at a time or all of a recipe."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from maisi.cli.console import give, give_table, steps_told
from maisi.cli.options import Assignments, Overwrite

train = typer.Typer(help="Train networks.", no_args_is_help=True)

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Packaged recipe or YAML file.", show_default=False)]
Manifest = Annotated[
    Path, typer.Option(metavar="FILE", help="Manifest of the cases to train on, or the folder of `maisi prepare`.")
]
AnyManifest = Annotated[
    Path | None,
    typer.Option("--manifest", metavar="FILE", help="Manifest of the cases, whose variations are encoded first."),
]
LabelledManifest = Annotated[
    Path | None,
    typer.Option("--manifest", metavar="FILE", help="Manifest of cases with labels; without it phantoms alone."),
]
AddTo = Annotated[
    str | None, typer.Option("--bundle", "-b", help="Bundle to add the networks to: packaged name or folder.")
]
Latents = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Or latents of these cases, from `maisi encode --manifest`.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; the bundle is inside.")]
Before = Annotated[
    str, typer.Option("--bundle", "-b", help="Bundle whose networks go before: packaged name or folder.")
]
Threads = Annotated[int | None, typer.Option(help="Threads to compute with.", show_default="one a core")]


Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Refuse a recipe of which a step needs more, such as 16GB.")
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Try a few steps on two cases, tell time and memory, and leave nothing.")
]


@dataclass(frozen=True)
class Machine:
    """What of the machine a training may take."""

    threads: int | None
    memory: str | None


@train.callback()
def _group() -> None:
    pass


@train.command()
def autoencoder(
    name: Recipe,
    manifest: Manifest,
    out: Out,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an autoencoder: volumes to latents and back. Run it again after a kill: it goes on."""
    _train("autoencoder", name, out, assignments, Machine(threads, memory), dry_run, {"manifest": manifest}, overwrite)


@train.command()
def diffusion(
    name: Recipe,
    bundle: Before,
    out: Out,
    manifest: AnyManifest = None,
    latents: Latents = None,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a denoising U-Net on latents of a bundle's autoencoder. Run it again after a kill: it goes on."""
    _train(
        "diffusion",
        name,
        out,
        assignments,
        Machine(threads, memory),
        dry_run,
        {"manifest": manifest, "latents": latents, "bundle": bundle},
        overwrite,
    )


@train.command()
def controlnet(
    name: Recipe,
    bundle: Before,
    out: Out,
    manifest: AnyManifest = None,
    latents: Latents = None,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a ControlNet, which makes a bundle's U-Net follow labels. Run it again after a kill: it goes on."""
    _train(
        "controlnet",
        name,
        out,
        assignments,
        Machine(threads, memory),
        dry_run,
        {"manifest": manifest, "latents": latents, "bundle": bundle},
        overwrite,
    )


@train.command()
def labels(
    name: Recipe,
    out: Out,
    manifest: LabelledManifest = None,
    bundle: AddTo = None,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a label generator: sizes of organs to label maps. Run it again after a kill: it goes on."""
    more = {key: value for key, value in {"manifest": manifest, "bundle": bundle}.items() if value is not None}
    _train("labels", name, out, assignments, Machine(threads, memory), False, more, overwrite)


@train.command()
def segmenter(
    name: Recipe,
    manifest: Manifest,
    out: Out,
    bundle: Annotated[
        str | None, typer.Option("--bundle", "-b", help="Bundle that gets the segmenter: packaged name or folder.")
    ] = None,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a segmenter, which tells the structures of a CT. Run it again after a kill: it goes on."""
    more = {"manifest": manifest, "bundle": bundle}
    _train("segmenter", name, out, assignments, Machine(threads, memory), dry_run, more, overwrite)


@train.command()
def recipe(
    name: Recipe,
    manifest: Manifest,
    out: Out,
    assignments: Assignments = None,
    threads: Threads = None,
    memory: Memory = None,
    dry_run: DryRunFlag = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a whole bundle: autoencoder, latents, U-Net, ControlNet. Run it again after a kill: it goes on."""
    _train("recipe", name, out, assignments, Machine(threads, memory), dry_run, {"manifest": manifest}, overwrite)


def _train(
    part: str,
    name: str,
    out: Path,
    assignments: list[str] | None,
    machine: Machine,
    dry_run: bool,
    more: dict[str, Any],
    overwrite: bool,
) -> None:
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.recipes.load import read_recipe, with_classes
    from maisi.recipes.recipe import BundleRecipe
    from maisi.runs.carry_out import carry_out
    from maisi.runs.task import Watch
    from maisi.runs.tasks import task_named
    from maisi.storage.settings import check_settings, with_assignments

    task = task_named(f"train {part}")
    settings = with_classes(with_assignments(read_recipe(name), assignments or []), more.get("bundle"))
    chosen = check_settings(BundleRecipe, settings)
    compute = {key: value for key, value in asdict(machine).items() if value is not None}
    asked = {"recipe": chosen.model_dump(mode="json"), "compute": compute, **more}
    request = check_settings(task.request, asked)
    with process_for(Compute.model_validate(compute)) as ranks:
        if dry_run:
            _try_out(part, task.check(request))
            return
        with steps_told() as on_stage:
            record = carry_out(task, request, out, overwrite=overwrite, watch=Watch(on_stage), ranks=ranks)
    if record is not None:
        give(str(out / "bundle"))


def _try_out(part: str, checked: Any) -> None:
    """A few steps, and what they say of all."""
    from maisi.compute.compute import format_bytes
    from maisi.runs.tasks.train import memory_of_steps, parts_of, try_out

    found, recipe = try_out(checked, part), checked.request.recipe
    memory = memory_of_steps(checked.request, parts_of(part, recipe), checked.bundle)
    rows = [
        (
            tried.part,
            tried.steps or "by the cases",
            f"{tried.seconds_a_step:.2f}",
            "?" if tried.hours is None else f"{tried.hours:.2g}",
            format_bytes(memory[tried.part].total) if tried.part in memory else "?",
            ", ".join(f"{name} {value:.3g}" for name, value in tried.losses.items()),
        )
        for tried in found.parts
    ]
    give_table(rows, ("", "steps", "s a step", "hours", "memory of a step", "last of the steps tried"))
    give(
        f"{found.cases} training cases; tried in {found.seconds:.0f} s, the process then at "
        f"{format_bytes(found.resident_bytes)}; nothing was kept"
    )
