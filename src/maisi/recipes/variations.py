"""What the networks learn from: patches of volumes, and encoded variations of cases and of phantoms."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from maisi.anatomy.body import redrawn_tissues, tissue_labels
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.augment import on_grid, vary_grid
from maisi.data.cases import case_span, read_case
from maisi.data.dataset import NamedVolumes, PatchSource, at_spacings, patch_source
from maisi.data.latents import Latent, LatentStore, write_latent
from maisi.data.manifest import Case
from maisi.networks.autoencoder import Autoencoder
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import encode
from maisi.pipelines.conditioning import MODALITIES, shown_labels
from maisi.pipelines.labels import DEFAULT_GRIDS
from maisi.recipes.recipe import PHANTOM, BundleRecipe
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume, check_same_grid


def make_latents(
    recipe: BundleRecipe, cases: Sequence[Case], autoencoder: Autoencoder, unet_multiple: int, folder: Path
) -> LatentStore:
    """Variations of every case and of phantoms, encoded, read when they are drawn; files that are there stay.

    Variations have latents whose sizes are multiples of `unet_multiple`; what is not varied is as it was prepared.
    """
    paths: list[Path] = []
    multiple, counts = autoencoder.factor * unet_multiple, recipe.latents.variations
    for case in (case for case in cases if case.id not in recipe.latents.exclude):
        count = 1 if not counts or not recipe.latents.vary else counts.get(case.group, 0)
        paths += _encode_case(recipe, case, autoencoder, multiple, count, folder)
    for index in range(recipe.latents.num_phantoms):
        path = folder / f"{PHANTOM}_{index}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_latent(encode_phantom(recipe, autoencoder, multiple, index), path)
        paths.append(path)
    return LatentStore(paths, kept_bytes=recipe.kept_latent_bytes)


def held_out_latents(
    recipe: BundleRecipe, cases: Sequence[Case], autoencoder: Autoencoder, unet_multiple: int, folder: Path
) -> LatentStore:
    """One variation of each case, as `make_latents` makes them, whatever the recipe says of its group."""
    multiple = autoencoder.factor * unet_multiple
    found = [_encode_case(recipe, case, autoencoder, multiple, 1, folder) for case in cases]
    return LatentStore([path for paths in found for path in paths], kept_bytes=recipe.kept_latent_bytes)


def _encode_case(
    recipe: BundleRecipe, case: Case, autoencoder: Autoencoder, multiple: int, count: int, folder: Path
) -> list[Path]:
    """The files of the latents of a case, written unless all are there."""
    names = [folder / f"{case.id}_{i}.safetensors" for i in range(count)]
    if all(path.exists() for path in names):
        return names
    vary = recipe.latents.vary
    made = _vary(recipe, case, autoencoder, multiple, count) if vary else [_prepared(recipe, case, autoencoder)]
    for path, latent in zip(names, made, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_latent(latent, path)
    return names


def _prepared(recipe: BundleRecipe, case: Case, autoencoder: Autoencoder) -> Latent:
    """A case as it was prepared, all of it."""
    volume, labels = read_case(case, recipe.latents.drop, recipe.vocabulary)
    span, name = case_span(case, labels), f"case {case.id}"
    return _encoded(autoencoder, volume, labels, span, volume.modality, case.group, name)


def _encoded(
    autoencoder: Autoencoder, volume: Volume, labels: LabelMap, span: RegionSpan, modality: str, group: str, name: str
) -> Latent:
    """A volume with its labels as training stores it, in half precision."""
    check_same_grid(labels, volume)
    ids = torch.from_numpy(labels.array.astype(np.uint8))
    latent = encode(autoencoder, volume, dtype=torch.float16, made_from=name)
    return dataclasses.replace(latent, labels=ids, span=span, modality_code=MODALITIES[modality], group=group)


def _vary(recipe: BundleRecipe, case: Case, autoencoder: Autoencoder, multiple: int, count: int) -> list[Latent]:
    rng = np.random.default_rng([recipe.seed, *case.id.encode()])
    volume, labels = read_case(case, recipe.latents.drop, recipe.vocabulary)
    tissues = tissue_labels(volume)
    made = []
    for i in range(count):
        shown = tissues if rng.random() < recipe.latents.tissues_only else labels
        shown = _without_fat(shown) if rng.random() < recipe.latents.without_fat else shown
        grid = vary_grid(volume.grid, rng, recipe.latents.spacing_mm, recipe.latents.max_size, multiple)
        part, part_labels = on_grid(volume, shown, grid)
        part_labels = redrawn_tissues(part_labels, part)
        span = case_span(case, labels)
        name = f"case {case.id}, variation {i}, autoencoder of recipe {recipe.name}"
        made.append(_encoded(autoencoder, part, part_labels, span, "ct", case.group, name))
    return made


def _without_fat(labels: LabelMap) -> LabelMap:
    vocabulary = load_vocabulary()
    fat, body = vocabulary.id("fat"), np.uint8(vocabulary.id("body"))
    return LabelMap(np.where(labels.array == fat, body, labels.array), labels.grid)


def as_shown(latent: Latent, shown_as: Mapping[str, str]) -> Latent:
    """The latent with groups of structures in its labels shown as one, see `shown_labels`."""
    assert latent.labels is not None
    return dataclasses.replace(latent, labels=torch.from_numpy(shown_labels(latent.labels.numpy(), shown_as)))


def encode_phantom(recipe: BundleRecipe, autoencoder: Autoencoder, multiple: int, index: int) -> Latent:
    """A rendered phantom, encoded; its size is a multiple of `multiple` voxels."""
    volume, labels, span = _phantom(recipe, multiple, index)
    name = f"phantom {index}, autoencoder of recipe {recipe.name}"
    return _encoded(autoencoder, volume, labels, span, PHANTOM, PHANTOM, name)


def _phantom(recipe: BundleRecipe, multiple: int, index: int) -> tuple[Volume, LabelMap, RegionSpan]:
    """A rendered phantom of one region at a random spacing."""
    rng = np.random.default_rng([recipe.seed, index])
    region = list(BodyRegion)[index % len(BodyRegion)].name.lower()
    usual, spacing = DEFAULT_GRIDS[region]
    covered = Grid.centered(usual, spacing)
    grid = vary_grid(covered, rng, recipe.latents.spacing_mm, recipe.latents.max_size, multiple)
    labels = draw_phantom(region, grid, rng)
    return render_phantom(labels, rng), LabelMap(labels.array.astype(np.uint8), grid), RegionSpan.named(region)


def patches_of(recipe: BundleRecipe, cases: Sequence[Case]) -> PatchSource:
    """Patches of the volumes of cases and of phantoms, groups drawn by the recipe's weights, else all cases alike."""

    def volumes(group: str) -> list[NamedVolumes]:
        if group == PHANTOM:
            indices = range(recipe.latents.num_phantoms)
            return [NamedVolumes(f"phantom {index}", partial(_phantom_volumes, recipe, index)) for index in indices]
        return [
            NamedVolumes(case.id, partial(at_spacings, case, recipe.spacings_mm), case.modality)
            for case in cases
            if case.group == group
        ]

    groups = recipe.groups or {group: sum(case.group == group for case in cases) for group in {c.group for c in cases}}
    return patch_source(((groups[name], volumes(name)) for name in sorted(groups)), recipe.kept_volume_bytes)


def _phantom_volumes(recipe: BundleRecipe, index: int) -> list[Volume]:
    return [_phantom(recipe, recipe.for_autoencoder().network.factor, index)[0]]
