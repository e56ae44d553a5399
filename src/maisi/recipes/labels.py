"""The training of a label generator: its maps, their autoencoder, the U-Net on their latents."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.slots import full_volumes
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, BundleInfo, LabelGeneratorInfo, build_scheduler
from maisi.data.latents import LatentSource, LatentStore, latent_scale, write_latent
from maisi.data.manifest import Case, read_manifest
from maisi.networks.autoencoder import Autoencoder
from maisi.networks.unet import DenoisingUNet
from maisi.pipelines.conditioning import MODALITIES
from maisi.pipelines.label_codec import encode_labels
from maisi.recipes.label_maps import StoredMap, arrays_of, channels_for, check_maps, in_channels, make_maps
from maisi.recipes.recipe import PHANTOM, BundleRecipe, LabelsRecipe
from maisi.recipes.stages import shifted
from maisi.training.diffusion import train_unet
from maisi.training.labels import LabelPatches, bits_of, train_label_autoencoder
from maisi.training.loop import OnStep

logger = logging.getLogger(__name__)

REAL = "real"
STD_MAPS = 64  # maps whose latents give mean and spread of the channels
OnPart = Callable[[str], OnStep | None]


@dataclass(frozen=True)
class LabelLesson:
    """What a label generator learns from: a recipe, and the training and validation cases with labels."""

    recipe: BundleRecipe
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()

    @classmethod
    def of(cls, recipe: BundleRecipe, manifest: Path | None) -> "LabelLesson":
        """The cases with labels of a manifest; without one, phantoms alone."""
        cases = [] if manifest is None else read_manifest(manifest)
        labelled = [case for case in cases if case.labels is not None or case.labels_maisi is not None]
        training, validation = (
            tuple(case for case in labelled if case.split == split) for split in ("training", "validation")
        )
        return cls(recipe, training, validation)


def labels_stage(lesson: LabelLesson, bundle: Bundle | None, folder: Path, on_part: OnPart) -> Bundle:
    """The bundle given, or a new one, with networks that draw label maps. Run again after a kill it goes on."""
    recipe = lesson.recipe.for_labels()
    seed = lesson.recipe.seed
    maps = make_maps(recipe.maps, seed, lesson.training, folder / "maps", recipe.maps.num_phantoms)
    check_maps(maps)
    held_out = make_maps(recipe.maps, seed, lesson.validation, folder / "maps" / "validation", 0)
    channels = channels_for(recipe.maps, maps)
    autoencoder = label_autoencoder_stage(recipe, maps, held_out, channels, folder, on_part("label autoencoder"))
    latents = make_label_latents(autoencoder, maps, channels, folder / "label_latents")
    unet, scale_factor = label_unet_stage(recipe, latents, folder, on_part("label diffusion"))
    told = generator_info(recipe, channels, scale_factor)
    networks = {told.autoencoder: autoencoder, told.unet: unet}
    return with_generator(bundle, lesson.recipe, told, networks)


def label_autoencoder_stage(
    recipe: LabelsRecipe,
    maps: Sequence[StoredMap],
    held_out: Sequence[StoredMap],
    channels: tuple[int, ...],
    folder: Path,
    on_step: OnStep | None,
) -> Autoencoder:
    """The autoencoder of label maps, its latents of mean zero in every channel."""
    source, config = patches(maps, channels), recipe.autoencoder
    watched = patches(held_out or maps, channels) if config.loop.validate_every else None
    network = train_label_autoencoder(config, source, folder / "label_autoencoder", on_step, validation=watched)
    return centred(network.cpu().eval(), source)


def patches(maps: Sequence[StoredMap], channels: tuple[int, ...]) -> LabelPatches:
    """Patches of the maps."""
    return LabelPatches(arrays_of(maps, channels), [each.name for each in maps], channels)


@torch.inference_mode()
def centred(autoencoder: Autoencoder, source: LabelPatches) -> Autoencoder:
    """The same autoencoder with latents of mean zero in every channel over the first maps; maps do not change."""
    count = min(STD_MAPS, len(source.maps))
    chosen = np.linspace(0, len(source.maps) - 1, count).round().astype(int)
    means = [
        autoencoder.encode(bits_of(torch.from_numpy(source.maps[int(i)])[None]))[0].double().mean((0, 2, 3, 4))
        for i in chosen
    ]
    return shifted(autoencoder, torch.stack(means).mean(0))


def make_label_latents(
    autoencoder: Autoencoder, maps: Sequence[StoredMap], channels: tuple[int, ...], folder: Path
) -> LatentStore:
    """Latents of the maps, with what the U-Net is told of them; files that are there stay."""
    paths, vocabulary = [], load_vocabulary()
    for each in maps:
        path = folder / f"{each.name}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            labels = in_channels(each.read(), channels, vocabulary)
            latent = encode_labels(autoencoder, labels, channels=channels, dtype=torch.float16, made_from=each.name)
            told = dataclasses.replace(
                latent,
                labels=torch.from_numpy(labels.array),
                span=each.span,
                modality_code=MODALITIES["unknown"],
                group=PHANTOM if each.name.startswith(PHANTOM) else REAL,
            )
            write_latent(told, path)
        paths.append(path)
    return LatentStore(paths)


def label_unet_stage(
    recipe: LabelsRecipe, latents: LatentStore, folder: Path, on_step: OnStep | None
) -> tuple[DenoisingUNet, float]:
    """The U-Net on latents of label maps, and the scale factor of these."""
    config, scale_factor = recipe.diffusion, latent_scale(latents)
    assert config.network is not None, "a recipe of a label generator describes its U-Net"
    groups = set(latents.groups)
    share = recipe.maps.phantom_share
    weights = {PHANTOM: share, REAL: 1 - share} if len(groups) == 2 else {each: 1.0 for each in groups}
    source = LatentSource(latents, weights, config.network.size_multiple)
    scheduler = build_scheduler(recipe.scheduler)
    unet = train_unet(config, source, scheduler, scale_factor, folder / "label_diffusion", on_step)
    return unet.cpu().eval(), scale_factor


def generator_info(recipe: LabelsRecipe, channels: tuple[int, ...], scale_factor: float) -> LabelGeneratorInfo:
    """What the networks were trained for."""
    vocabulary, sized = load_vocabulary(), tuple(full_volumes())
    lesions = {vocabulary.name(id) for id in set(lesion_ids(vocabulary)) & set(channels)}
    return LabelGeneratorInfo(
        size=recipe.maps.size,
        spacing_mm=recipe.maps.spacing_mm,
        scale_factor=scale_factor,
        scheduler=recipe.scheduler,
        channels=() if recipe.maps.channels == "released" else channels,
        sized=sized,
        lesions=tuple(name for name in sized if name in lesions),
        open_sizes=recipe.diffusion.drop.all_sizes > 0,
    )


def with_generator(
    bundle: Bundle | None, recipe: BundleRecipe, told: LabelGeneratorInfo, networks: dict[str, torch.nn.Module]
) -> Bundle:
    """The bundle given with these networks in place of its own label generator; without one, a bundle of them alone."""
    if bundle is None:
        info = BundleInfo(
            name=recipe.name,
            description=recipe.description,
            licence=recipe.licence,
            vocabulary_version=load_vocabulary().version,
            limits=recipe.limits,
            label_generator=told,
        )
        return Bundle.of(info, networks)
    kept = {name: bundle.network(name) for name in bundle.names if name not in networks}
    info = bundle.info.model_copy(update={"label_generator": told})
    return Bundle.of(info, {**kept, **networks}, model_card=bundle.model_card, licence_text=bundle.licence_text)
