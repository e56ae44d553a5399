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
from maisi.data.labelled import (
    LabelledArrays,
    LabelledSource,
    NamedLabelled,
    labelled_arrays,
    labelled_case,
    labelled_source,
)
from maisi.data.latents import Latent, LatentStore, write_latent
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import encode
from maisi.pipelines.conditioning import MODALITIES, shown_labels
from maisi.pipelines.labels import DEFAULT_GRIDS
from maisi.recipes.recipe import PHANTOM, BundleRecipe
from maisi.shapes import in_words
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
        count = counts.get(case.group, 0) if counts and not recipe.latents.as_prepared else 1
        names = [folder / f"{case.stem}_{i}.safetensors" for i in range(count)]
        if names and not all(path.exists() for path in names):
            for path, latent in zip(names, _vary(recipe, case, autoencoder, multiple, count), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_latent(latent, path)
        paths += names
    for index in range(recipe.latents.num_phantoms):
        path = folder / f"{PHANTOM}_{index}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_latent(encode_phantom(recipe, autoencoder, multiple, index), path)
        paths.append(path)
    return LatentStore(paths, kept_bytes=recipe.kept_latent_bytes)


def encode_labelled(
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
    tissues = tissue_labels(volume) if volume.modality == "ct" else None  # an MR shows none by its values
    made = []
    for i in range(count):
        shown = tissues if tissues is not None and rng.random() < recipe.latents.tissues_only else labels
        shown = _without_fat(shown) if rng.random() < recipe.latents.without_fat else shown
        grid = _grid(recipe, case, volume.grid, rng, multiple)
        part, part_labels = on_grid(volume, shown, grid)
        if tissues is not None:
            part_labels = redrawn_tissues(part_labels, part)
        span = case_span(case, labels)
        name = f"case {case.id}, variation {i}, autoencoder of recipe {recipe.name}"
        made.append(encode_labelled(autoencoder, part, part_labels, span, case.modality, case.group, name))
    return made


def _grid(recipe: BundleRecipe, case: Case, grid: Grid, rng: np.random.Generator, multiple: int) -> Grid:
    """The grid of a variation."""
    if not recipe.latents.as_prepared:
        return vary_grid(grid, rng, recipe.latents.spacing_mm, recipe.latents.max_size, multiple)
    if any(n % multiple for n in grid.shape):
        size = in_words(grid.shape)
        raise InvalidRequestError(
            f"case {case.id} has {size} voxels; latents as prepared need multiples of {multiple}, such as "
            f"`maisi prepare --multiple {multiple}` makes"
        )
    return grid


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
    return encode_labelled(autoencoder, volume, labels, span, PHANTOM, PHANTOM, name)


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
    return patch_source(volumes_of(recipe, cases), recipe.kept_volume_bytes)


def volumes_of(recipe: BundleRecipe, cases: Sequence[Case]) -> list[tuple[float, list[NamedVolumes]]]:
    """What the autoencoder sees: the weight and the volumes of each group.

    Raises `InvalidRequestError` where the recipe weighs groups of cases and there is none of them.
    """
    shown = [case for case in cases if recipe.shows(case)]
    groups = recipe.groups or {group: sum(case.group == group for case in cases) for group in {c.group for c in cases}}
    weighed = sorted(name for name, weight in groups.items() if weight > 0)
    if not shown and cases and weighed != [PHANTOM]:
        there = ", ".join(sorted({case.group for case in cases}))
        raise InvalidRequestError(
            f"groups of the recipe weighs {', '.join(weighed)} and no case is of them; the cases are of {there}"
        )

    def volumes(group: str) -> list[NamedVolumes]:
        if group == PHANTOM:
            indices = range(recipe.latents.num_phantoms)
            return [NamedVolumes(f"phantom {index}", partial(_phantom_volumes, recipe, index)) for index in indices]
        return [
            NamedVolumes(case.id, partial(at_spacings, case, recipe.spacings_mm), case.modality)
            for case in shown
            if case.group == group
        ]

    return [(groups[name], volumes(name)) for name in weighed]


def _phantom_volumes(recipe: BundleRecipe, index: int) -> list[Volume]:
    return [_phantom(recipe, recipe.for_autoencoder().network.factor, index)[0]]


def labelled_of(recipe: BundleRecipe, cases: Sequence[Case], is_training: bool = True) -> LabelledSource:
    """Labelled cases and phantoms, groups drawn by the recipe's weights, else all cases alike.

    Without `is_training` all cases count alike, and there are no phantoms.
    """
    config = recipe.for_segmenter()
    classes = config.network(recipe.vocabulary).classes
    named = partial(
        labelled_case,
        classes=classes,
        spacing_mm=config.spacing_mm,
        vocabulary=recipe.vocabulary,
        drop=recipe.latents.drop,
    )
    cases = [case for case in cases if case.modality == "ct"]
    if not is_training:
        return labelled_source([(1.0, [named(case) for case in cases])], recipe.kept_volume_bytes)
    weights = recipe.groups or {group: sum(c.group == group for c in cases) for group in {c.group for c in cases}}
    members = {name: [named(case) for case in cases if case.group == name] for name in weights}
    if PHANTOM in weights:
        members[PHANTOM] = [_labelled_phantom(recipe, index) for index in range(recipe.latents.num_phantoms)]
    groups = [(weights[name], members[name]) for name in sorted(weights) if members[name]]
    return labelled_source(groups, recipe.kept_volume_bytes)


def _labelled_phantom(recipe: BundleRecipe, index: int) -> NamedLabelled:
    return NamedLabelled(f"{PHANTOM} {index}", partial(_phantom_arrays, recipe, index))


def _phantom_arrays(recipe: BundleRecipe, index: int) -> LabelledArrays:
    config, vocabulary = recipe.for_segmenter(), recipe.vocabulary
    volume, labels, _ = _phantom(recipe, 1, index)
    classes = config.network(vocabulary).classes
    return labelled_arrays(volume, labels, classes, config.spacing_mm, vocabulary.ids, vocabulary)
