"""The recipe of a whole bundle: autoencoder, latents, U-Net, ControlNet, measured and saved, one stage after another.

Every stage leaves its result in the run folder and is skipped or resumed when the recipe is run again.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from maisi.anatomy.body import redrawn_tissues, tissue_labels
from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import (
    Bundle,
    BundleInfo,
    Limits,
    RectifiedFlowSpec,
    build_scheduler,
    load_bundle,
    save_bundle,
)
from maisi.data.augment import on_grid, vary_grid
from maisi.data.cases import case_span, read_case
from maisi.data.dataset import KEPT_BYTES as KEPT_VOLUME_BYTES
from maisi.data.dataset import LoadVolumes, PatchSource, at_spacings, patch_source
from maisi.data.latents import KEPT_BYTES as KEPT_LATENT_BYTES
from maisi.data.latents import Latent, LatentSource, LatentStore, latent_scale, write_latent
from maisi.data.manifest import Case, read_manifest
from maisi.networks.autoencoder import Autoencoder
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.codec import encode
from maisi.pipelines.conditioning import MODALITIES, shown_labels
from maisi.pipelines.labels import DEFAULT_GRIDS
from maisi.recipes.card import measure_bundle, model_card, write_quality
from maisi.shapes import Frozen, Size3
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume, check_same_grid
from maisi.training.autoencoder import AutoencoderTraining, train_autoencoder
from maisi.training.controlnet import ControlNetTraining, train_controlnet
from maisi.training.diffusion import DiffusionTraining, train_unet

logger = logging.getLogger(__name__)

PHANTOM = "phantom"
OnStep = Callable[[str, int, Mapping[str, float]], None]


class LatentRecipe(Frozen):
    """How many variations of each case are encoded, and within which spacings (mm) and sizes (voxels)."""

    variations: dict[str, int]
    spacing_mm: tuple[float, float] = (2.0, 5.0)
    max_size: Size3 = (96, 96, 96)
    tissues_only: float = Field(default=0.3, ge=0, le=1)
    without_fat: float = Field(default=0.5, ge=0, le=1)  # fat as plain body, as in label maps made elsewhere
    exclude: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()  # names of labels, or numbers without a name, that count as background
    num_phantoms: int = Field(default=0, ge=0)
    weights: dict[str, float]


class BundleRecipe(Frozen):
    """All settings of a bundle; `groups` weighs the groups of the manifest in autoencoder training."""

    name: str
    seed: int = 0
    description: str = ""
    expectations: str = ""
    licence: str
    groups: dict[str, float]
    spacings_mm: tuple[float, ...] = ()
    limits: Limits = Limits()
    controlnet_scale: float = Field(default=1.0, ge=0)
    shown_as: dict[str, str] = Field(default_factory=dict)
    scheduler: RectifiedFlowSpec = RectifiedFlowSpec()
    autoencoder: AutoencoderTraining
    latents: LatentRecipe
    diffusion: DiffusionTraining
    controlnet: ControlNetTraining
    kept_volume_bytes: int = Field(default=KEPT_VOLUME_BYTES, ge=0)  # of volumes in memory while the autoencoder learns
    kept_latent_bytes: int = Field(default=KEPT_LATENT_BYTES, ge=0)  # of latents, while the other networks learn

    @property
    def size_multiple(self) -> int:
        """Sizes in voxels that all the networks accept are multiples of this."""
        return self.autoencoder.network.factor * self.diffusion.network.size_multiple


def build_bundle(recipe: BundleRecipe, manifest: Path, folder: Path, on_step: OnStep | None = None) -> Path:
    """Train everything on the training split of a manifest and give the path of the bundle, `folder/bundle`.

    Run it again after a kill: it goes on where it stopped, and gives the same bundle.
    """
    cases = _split(manifest, "training")
    autoencoder = train_autoencoder(
        recipe.autoencoder, _patches(recipe, cases), folder / "autoencoder", _named(on_step, "autoencoder")
    )
    latents = make_latents(recipe, cases, autoencoder, folder / "latents")
    bundle = train_diffusion(recipe, autoencoder, latents, folder, on_step)
    return save_measured(bundle, cases, _split(manifest, "validation"), folder, recipe.expectations)


def train_diffusion(
    recipe: BundleRecipe,
    autoencoder: Autoencoder,
    latents: LatentStore,
    folder: Path,
    on_step: OnStep | None = None,
) -> Bundle:
    """The bundle of an autoencoder with a U-Net and a ControlNet trained on its latents."""
    autoencoder, latents = centre_latents(autoencoder, latents)
    scheduler, scale_factor = build_scheduler(recipe.scheduler), latent_scale(latents)
    latents = latents.with_change(lambda latent: _as_shown(latent, recipe.shown_as))
    source = LatentSource(latents, recipe.latents.weights, recipe.diffusion.network.size_multiple)
    unet = train_unet(
        recipe.diffusion, source, scheduler, scale_factor, folder / "diffusion", _named(on_step, "diffusion")
    )
    controlnet, unet = train_controlnet(
        recipe.controlnet, unet, source, scheduler, scale_factor, folder / "controlnet", _named(on_step, "controlnet")
    )
    info = BundleInfo(
        name=recipe.name,
        description=recipe.description,
        licence=recipe.licence,
        vocabulary_version=load_vocabulary().version,
        scale_factor=scale_factor,
        scheduler=recipe.scheduler,
        limits=recipe.limits,
        controlnet_scale=recipe.controlnet_scale,
        shown_as=recipe.shown_as,
    )
    networks = {"autoencoder": autoencoder, "unet": unet, "controlnet": controlnet}
    return Bundle.of(info, networks)


def save_measured(
    bundle: Bundle, training: Sequence[Case], validation: Sequence[Case], folder: Path, expectations: str = ""
) -> Path:
    """Save a bundle as float16, measure it as it will be loaded, and save it again with its model card."""
    path = save_bundle(bundle, folder / "bundle", dtype=torch.float16, overwrite=True)
    quality = measure_bundle(load_bundle(path), validation, [*training, *validation], on_case=logger.info)
    write_quality(quality, folder / "quality.json")
    licence = f"{bundle.info.licence}\nAttribution: see MODEL_CARD.md\n"
    loaded = load_bundle(path)
    carded = dataclasses.replace(
        loaded, model_card=model_card(loaded, quality, training, expectations), licence_text=licence
    )
    return save_bundle(carded, folder / "bundle", dtype=torch.float16, overwrite=True)


def _split(manifest: Path, split: str) -> list[Case]:
    return [case for case in read_manifest(manifest) if case.split == split and case.image is not None]


def make_latents(recipe: BundleRecipe, cases: Sequence[Case], autoencoder: Autoencoder, folder: Path) -> LatentStore:
    """Variations of every case and of phantoms, encoded, read when they are drawn; files that are there stay."""
    paths: list[Path] = []
    for case in (case for case in cases if case.id not in recipe.latents.exclude):
        names = [folder / f"{case.id}_{i}.safetensors" for i in range(recipe.latents.variations.get(case.group, 0))]
        if names and not all(path.exists() for path in names):
            for path, latent in zip(names, _vary(recipe, case, autoencoder, len(names)), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_latent(latent, path)
        paths += names
    for index in range(recipe.latents.num_phantoms):
        path = folder / f"{PHANTOM}_{index}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_latent(encode_phantom(recipe, autoencoder, index), path)
        paths.append(path)
    return LatentStore(paths, kept_bytes=recipe.kept_latent_bytes)


def centre_latents(autoencoder: Autoencoder, latents: LatentStore) -> tuple[Autoencoder, LatentStore]:
    """The same autoencoder with latents of mean zero in every channel, as the noise has that they are made from.

    What the last bias of the encoder takes away, the first one of the decoder puts back: volumes do not change.
    """
    sums, count = [], 0
    for latent in latents:
        sums.append(latent.mean[0].double().sum((1, 2, 3)))
        count += latent.mean[0, 0].numel()
    mean = torch.stack(sums).sum(0) / count
    shifted = copy.deepcopy(autoencoder)
    encoding, decoding = shifted.to_mean.bias, shifted.from_latent.bias
    assert encoding is not None
    assert decoding is not None
    with torch.no_grad():
        encoding -= mean.to(encoding)
        weight = shifted.from_latent.weight[:, :, 0, 0, 0].double()
        decoding += (weight @ mean.to(weight.device)).to(decoding)
    moved = mean[:, None, None, None]

    def centre(latent: Latent) -> Latent:
        return dataclasses.replace(latent, mean=(latent.mean.double() - moved).to(latent.mean))

    return shifted, latents.with_change(centre)


def _encoded(
    autoencoder: Autoencoder, volume: Volume, labels: LabelMap, span: RegionSpan, modality: str, group: str, name: str
) -> Latent:
    """A volume with its labels as training stores it, in half precision."""
    check_same_grid(labels, volume)
    ids = torch.from_numpy(labels.array.astype(np.uint8))
    latent = encode(autoencoder, volume, dtype=torch.float16, made_from=name)
    return dataclasses.replace(latent, labels=ids, span=span, modality_code=MODALITIES[modality], group=group)


def _vary(recipe: BundleRecipe, case: Case, autoencoder: Autoencoder, count: int) -> list[Latent]:
    rng = np.random.default_rng([recipe.seed, *case.id.encode()])
    volume, labels = read_case(case, recipe.latents.drop)
    tissues = tissue_labels(volume)
    made = []
    for i in range(count):
        shown = tissues if rng.random() < recipe.latents.tissues_only else labels
        shown = _without_fat(shown) if rng.random() < recipe.latents.without_fat else shown
        grid = vary_grid(volume.grid, rng, recipe.latents.spacing_mm, recipe.latents.max_size, recipe.size_multiple)
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


def _as_shown(latent: Latent, shown_as: Mapping[str, str]) -> Latent:
    assert latent.labels is not None
    return dataclasses.replace(latent, labels=torch.from_numpy(shown_labels(latent.labels.numpy(), shown_as)))


def encode_phantom(recipe: BundleRecipe, autoencoder: Autoencoder, index: int) -> Latent:
    """A rendered phantom, encoded."""
    volume, labels, span = _phantom(recipe, index)
    name = f"phantom {index}, autoencoder of recipe {recipe.name}"
    return _encoded(autoencoder, volume, labels, span, PHANTOM, PHANTOM, name)


def _phantom(recipe: BundleRecipe, index: int) -> tuple[Volume, LabelMap, RegionSpan]:
    """A rendered phantom of one region at a random spacing."""
    rng = np.random.default_rng([recipe.seed, index])
    region = list(BodyRegion)[index % len(BodyRegion)].name.lower()
    usual, spacing = DEFAULT_GRIDS[region]
    covered = Grid.centered(usual, spacing)
    grid = vary_grid(covered, rng, recipe.latents.spacing_mm, recipe.latents.max_size, recipe.size_multiple)
    labels = draw_phantom(region, grid, rng)
    return render_phantom(labels, rng), LabelMap(labels.array.astype(np.uint8), grid), RegionSpan.named(region)


def _patches(recipe: BundleRecipe, cases: Sequence[Case]) -> PatchSource:
    def loads(group: str) -> list[LoadVolumes]:
        if group == PHANTOM:
            return [partial(_phantom_volumes, recipe, index) for index in range(recipe.latents.num_phantoms)]
        return [partial(at_spacings, case, recipe.spacings_mm) for case in cases if case.group == group]

    return patch_source(((weight, loads(group)) for group, weight in recipe.groups.items()), recipe.kept_volume_bytes)


def _phantom_volumes(recipe: BundleRecipe, index: int) -> list[Volume]:
    return [_phantom(recipe, index)[0]]


def _named(on_step: OnStep | None, stage: str) -> Callable[[int, Mapping[str, float]], None] | None:
    return None if on_step is None else (lambda step, metrics: on_step(stage, step, metrics))
