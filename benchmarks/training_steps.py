"""Seconds and memory of a training step on this machine's CPU, for each training of a preset.

    python benchmarks/training_steps.py [--presets tiny small paper] [--parts autoencoder diffusion controlnet]
                                        [--largest 32768] [--steps 3]

One batch a step (a recipe's `accumulate` of them make its own steps), in float32, with the settings of the recipe
otherwise, on noise. Each is measured in a process of its own, twice: as it is without `--memory`, where freed memory is
kept for the next step, and with it (`given back`). Told are the median seconds of the steps after the first, and the
resident memory at most above that of the process before, beside what `maisi plan --train` counts. Latents are the
largest of the recipe that have no more voxels than --largest, else cubes of so many; patches are `early_patch`, or
`patch` where the recipe has none. Writes benchmarks/results/training_steps.json and .md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import vector_unit
from memory import resident, start_peak

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.bundle.bundle import RectifiedFlowSpec, build_scheduler
from maisi.data.dataset import NamedVolumes, patch_source
from maisi.data.latents import Latent, LatentSource
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.recipes.load import load_recipe
from maisi.recipes.memory import training_memory
from maisi.recipes.recipe import BundleRecipe
from maisi.shapes import Size3
from maisi.space.grid import Grid
from maisi.space.volume import Volume
from maisi.splitting.cpu.heap import freed_slabs
from maisi.training.autoencoder import train_autoencoder
from maisi.training.controlnet import train_controlnet
from maisi.training.diffusion import train_unet
from maisi.training.loop import METRICS, LoopConfig

RESULTS = Path(__file__).parent / "results"
KEPT, GIVEN_BACK = FREED = ("kept", "given back")  # what becomes of the memory that a step frees
TOLD = {"seconds a batch": "seconds_a_batch", "at most, MB": "peak_mb"}
PRESETS, PARTS = ("tiny", "small", "paper"), ("autoencoder", "diffusion", "controlnet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--largest", type=int, default=32**3, help="voxels of a latent")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--alone", choices=FREED, help="measure one part here, and print it")
    asked = parser.parse_args()
    if asked.alone:
        with freed_slabs(kept=asked.alone == KEPT):
            print(json.dumps(measured(asked.presets[0], asked.parts[0], asked.largest, asked.steps)))
        return
    path = RESULTS / "training_steps.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for preset in asked.presets:
        for part in asked.parts:
            one = ["--presets", preset, "--parts", part, "--largest", str(asked.largest), "--steps", str(asked.steps)]
            row: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
            for freed in FREED:
                done = subprocess.run(
                    [sys.executable, __file__, *one, "--alone", freed], check=True, capture_output=True, text=True
                )
                facts = json.loads(done.stdout.splitlines()[-1])
                row[freed] = {key: facts.pop(key) for key in TOLD.values()}
                row |= facts
            found |= {"machine": {"cores": os.cpu_count(), "unit": vector_unit()}, f"{preset} {part}": row}
            print(preset, part, row, flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(written(found), encoding="utf-8")


def measured(preset: str, part: str, largest: int, steps: int) -> dict[str, Any]:
    """The facts of one training."""
    recipe = reduced(load_recipe(preset), part, largest, steps)
    planned = training_memory(recipe)[part]
    with tempfile.TemporaryDirectory() as name:
        before = start_peak()
        size = TRAININGS[part](recipe, Path(name))
        peak = resident("VmHWM")
        lines = [json.loads(line) for line in (Path(name) / METRICS).read_text(encoding="utf-8").splitlines()]
    return {
        "size": size,
        "batch": getattr(recipe, part).batch_size,
        "batches_a_step": getattr(load_recipe(preset), part).optimization.accumulate,
        "seconds_a_batch": round(median(line["seconds"] for line in lines[1:]), 2),
        "planned_mb": round(planned.total / 1e6),
        "peak_mb": round((peak - before) / 1e6),
        "threads": torch.get_num_threads(),
    }


def reduced(recipe: BundleRecipe, part: str, largest: int, steps: int) -> BundleRecipe:
    """The recipe on the CPU, a few steps of one batch, without validation and with no more voxels than that."""
    config = getattr(recipe, part)
    update: dict[str, Any] = {
        "loop": LoopConfig(num_steps=steps, save_every=steps, seed=config.loop.seed),
        "optimization": config.optimization.model_copy(update={"accumulate": 1, "precision": "float32"}),
        "device": "cpu",
    }
    if part == "autoencoder":
        update |= {"patch": config.early_patch or config.patch, "early_patch": None, "adversarial_start": 0}
    else:
        fitting = [size for size in config.sizes if np.prod(size) <= largest]
        side = round(largest ** (1 / 3))
        update["sizes"] = (max(fitting, key=np.prod) if fitting else (side,) * 3,)
    return recipe.model_copy(update={part: config.model_copy(update=update)})


def learn_autoencoder(recipe: BundleRecipe, folder: Path) -> Size3:
    config = recipe.for_autoencoder()
    hu = np.random.default_rng(0).normal(0, 200, config.patch).astype(np.float32)
    volume = Volume(hu, Grid.centered(config.patch, (2.0, 2.0, 2.0)))
    source = patch_source([(1.0, [NamedVolumes("noise", partial(list, [volume]))])])
    train_autoencoder(config.model_copy(update={"early_share": 0.0}), source, folder)
    return config.patch


def learn_unet(recipe: BundleRecipe, folder: Path) -> Size3:
    config = recipe.for_unet()
    unet = config.network or UNetConfig()
    train_unet(config, noise(recipe, unet, config.sizes[0]), build_scheduler(schedule(recipe)), 1.0, folder)
    return config.sizes[0]


def learn_controlnet(recipe: BundleRecipe, folder: Path) -> Size3:
    config = recipe.for_controlnet()
    unet = DenoisingUNet((recipe.diffusion.network if recipe.diffusion else None) or UNetConfig()).eval()
    source = noise(recipe, unet.config, config.sizes[0])
    train_controlnet(config, unet, source, build_scheduler(schedule(recipe)), 1.0, folder)
    return config.sizes[0]


TRAININGS = {"autoencoder": learn_autoencoder, "diffusion": learn_unet, "controlnet": learn_controlnet}


def schedule(recipe: BundleRecipe) -> Any:
    return recipe.scheduler or RectifiedFlowSpec()


def noise(recipe: BundleRecipe, unet: UNetConfig, size: Size3) -> LatentSource:
    """A latent of noise with labels of plain body, as large as the crops."""
    factor = recipe.for_autoencoder().network.factor
    grid = Grid.centered([n * factor for n in size], (2.0, 2.0, 2.0))
    mean = torch.randn((1, unet.in_channels, *size), generator=torch.Generator().manual_seed(0))
    labels = torch.full(grid.shape, 200, dtype=torch.uint8)
    span = RegionSpan(BodyRegion.CHEST, BodyRegion.ABDOMEN)
    latent = Latent(
        mean, torch.full_like(mean, -20.0), grid, made_from="noise", labels=labels, span=span, modality_code=1
    )
    return LatentSource([latent], {}, unet.size_multiple)


def written(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    header = ("", "batch", "batches a step", "planned, MB", *(f"{freed}: {what}" for freed in FREED for what in TOLD))
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for name, row in found.items():
        if name != "machine":
            size = f"{row['batch']} x " + " x ".join(map(str, row["size"]))
            taken = [row[freed][key] for freed in FREED for key in TOLD.values()]
            cells = (name, size, row["batches_a_step"], row["planned_mb"], *taken)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
