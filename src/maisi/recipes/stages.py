"""The trainings of a bundle, one network at a time, and all of them as one recipe.

Every stage leaves its state in its folder and goes on there when it is run again; each gives a bundle that holds one
network more than the one it was given.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import (
    Bundle,
    BundleInfo,
    Condition,
    RectifiedFlowSpec,
    build_scheduler,
    load_bundle,
    save_bundle,
)
from maisi.bundle.digest import weights_digest
from maisi.data.dataset import PatchSource
from maisi.data.latents import LatentEntry, LatentSource, LatentStore, latent_scale
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder
from maisi.networks.controlnet import check_levels, check_occupancies
from maisi.networks.segmenter import SegmentationUNet
from maisi.networks.unet import UNetConfig
from maisi.pipelines.segment import segmenter_of
from maisi.recipes.card import measure_bundle, model_card, write_quality
from maisi.recipes.realism import measure_realism
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.variations import as_shown, labelled_of, make_latents, patches_of
from maisi.training.autoencoder import train_autoencoder
from maisi.training.controlnet import ControlNetTraining, controlnet_like, train_controlnet
from maisi.training.diffusion import DiffusionTraining, check_unet, train_unet
from maisi.training.loop import step_generators
from maisi.training.new_classes import numbered
from maisi.training.segmenter import SegmenterTraining, check_same_segmenter, train_segmenter
from maisi.training.validation import HeldOut

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, Mapping[str, float]], None]
CENTRING_DRAWS = 64  # batches of patches whose latents are averaged


@dataclass(frozen=True)
class Lesson:
    """What a stage learns from: a recipe and the training and validation cases of a manifest."""

    recipe: BundleRecipe
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()

    @classmethod
    def of(cls, recipe: BundleRecipe, manifest: Path) -> "Lesson":
        """The cases with images of a manifest; raises `InvalidRequestError` where none is for training."""
        cases = [case for case in read_manifest(manifest) if case.image is not None]
        training = tuple(case for case in cases if case.split == "training")
        if not training:
            splits = ", ".join(sorted({case.split for case in cases})) or "no case with an image"
            raise InvalidRequestError(f"{manifest} has no case to train on, only {splits}; expected split training")
        return cls(recipe, training, tuple(case for case in cases if case.split == "validation"))


def build_bundle(lesson: Lesson, folder: Path, on_step: OnStep | None = None) -> Path:
    """Train everything and give the path of the bundle, `folder/bundle`, measured and with its model card.

    Run it again after a kill: it goes on where it stopped, and gives the same bundle.
    """
    return save_measured(all_stages(lesson, folder, on_step), lesson, folder)


def all_stages(lesson: Lesson, folder: Path, on_step: OnStep | None = None) -> Bundle:
    """The bundle of all networks of a recipe, one trained after the other."""
    bundle = autoencoder_stage(lesson, folder, on_step)
    latents = encoded(lesson, bundle, folder / "latents")
    bundle = unet_stage(lesson, bundle, latents, folder, on_step)
    bundle = controlnet_stage(lesson, bundle, latents, folder, on_step)
    return bundle if lesson.recipe.segmenter is None else segmenter_stage(lesson, bundle, folder, on_step)


def autoencoder_stage(lesson: Lesson, folder: Path, on_step: OnStep | None = None) -> Bundle:
    """A bundle of the autoencoder alone, whose latents have mean zero in every channel.

    With `start_from` the autoencoder of that bundle goes on learning. Where its encoder stays
    (`decoder_only_after: 0`), latents do too, and so do the other networks of that bundle.
    """
    recipe = lesson.recipe
    source, config = patches_of(recipe, lesson.training), recipe.for_autoencoder()
    watched = [case for case in lesson.validation if recipe.shows(case)] if config.loop.validate_every else []
    if config.loop.validate_every and not watched:
        logger.warning("no case is for validation: the autoencoder learns unwatched")
    held_out = patches_of(recipe, watched) if watched else None
    start = None if config.start_from is None else load_bundle(config.start_from)
    first = None if start is None else start.autoencoder
    told = _named(on_step, "autoencoder")
    network = train_autoencoder(config, source, folder / "autoencoder", told, validation=held_out, start=first).cpu()
    if start is not None and config.decoder_only_after == 0:
        return with_networks(start, start.info, {"autoencoder": network})
    if start is None:
        network = centred_autoencoder(network, source, config.batch_size, config.patch, config.loop.seed)
    return Bundle.of(_info(recipe), {"autoencoder": network})


def segmenter_to_start_from(config: SegmenterTraining) -> SegmentationUNet | None:
    """The network of `start_from`; raises `InvalidRequestError` where it is of another kind than the recipe's."""
    if config.start_from is None:
        return None
    network = segmenter_of(load_bundle(config.start_from)).network
    check_same_segmenter(network.config, config.network(load_vocabulary()))
    return network


def segmenter_stage(lesson: Lesson, bundle: Bundle | None, folder: Path, on_step: OnStep | None = None) -> Bundle:
    """The bundle given with a segmenter, or one of the segmenter alone."""
    recipe, config = lesson.recipe, lesson.recipe.for_segmenter()
    watched = [case for case in lesson.validation if case.labels is not None or case.labels_maisi is not None]
    held_out = labelled_of(recipe, watched, is_training=False) if watched and config.loop.validate_every else None
    if held_out is None and config.loop.validate_every:
        logger.warning("no case for validation has labels: the segmenter learns unwatched")
    source, told = labelled_of(recipe, lesson.training), _named(on_step, "segmenter")
    start = segmenter_to_start_from(config)
    network = train_segmenter(config, source, folder / "segmenter", told, validation=held_out, start=start).cpu()
    if bundle is None:
        return Bundle.of(_info(recipe), {"segmenter": network})
    return with_networks(bundle, bundle.info, {"segmenter": network})


@dataclass(frozen=True)
class Encoded:
    """Latents to learn from, and those of held-out cases to measure on."""

    training: LatentStore
    validation: LatentStore | None = None

    def drawn(self, weights: Mapping[str, float]) -> "Encoded":
        """Those of the groups that are drawn; others count neither in epochs nor in what is measured."""
        held_out = None if self.validation is None else self.validation.of_groups(weights)
        return Encoded(self.training.of_groups(weights), held_out)


def encoded(lesson: Lesson, bundle: Bundle, folder: Path) -> Encoded:
    """Latents of variations of the cases, made with the bundle's autoencoder; files that are there stay.

    Those of held-out cases are made where the recipe validates.
    """
    recipe, autoencoder, multiple = lesson.recipe, bundle.autoencoder, _multiple(lesson, bundle)
    training = make_latents(recipe, lesson.training, autoencoder, multiple, folder)
    parts = (recipe.diffusion, recipe.controlnet)
    if not lesson.validation or not any(part is not None and part.loop.validate_every for part in parts):
        return Encoded(training)
    alone = recipe.model_copy(update={"latents": recipe.latents.model_copy(update={"num_phantoms": 0})})
    held_out = make_latents(alone, lesson.validation, autoencoder, multiple, folder / "validation")
    return Encoded(training, held_out if len(held_out) else None)


def stored_latents(folder: Path, entries: Sequence[LatentEntry], kept_bytes: int) -> Encoded:
    """Latents of a folder by the split of its index; raises `InvalidRequestError` where none is for training."""
    paths = {
        split: [folder / entry.file for entry in entries if entry.split == split]
        for split in ("training", "validation")
    }
    if not paths["training"]:
        raise InvalidRequestError(f"{folder} has no latent to train on; expected split training")
    held_out = LatentStore(paths["validation"], kept_bytes=kept_bytes) if paths["validation"] else None
    return Encoded(LatentStore(paths["training"], kept_bytes=kept_bytes), held_out)


def _multiple(lesson: Lesson, bundle: Bundle) -> int:
    """Of what the sizes of latents must be multiples: for the U-Net that the recipe trains, else the bundle's."""
    config = lesson.recipe.diffusion
    if config is None:
        return bundle.unet.config.size_multiple
    if config.start_from is not None:
        return load_bundle(config.start_from).unet.config.size_multiple
    return (config.network or UNetConfig()).size_multiple


def unet_stage(lesson: Lesson, bundle: Bundle, latents: Encoded, folder: Path, on_step: OnStep | None = None) -> Bundle:
    """The bundle with a U-Net trained on latents of its autoencoder; a ControlNet of an earlier U-Net is left out.

    One that starts from a bundle keeps that one's noise schedule and scale factor: its weights know no other.
    """
    recipe, config = lesson.recipe, lesson.recipe.for_unet()
    start = starting_bundle(recipe, config, bundle, "unet")
    spec = recipe.scheduler or RectifiedFlowSpec() if start is None else start.info.scheduler
    assert spec is not None, "a bundle with a U-Net has a schedule"
    latents = latents.drawn(recipe.latents.weights)
    scale_factor = latent_scale(latents.training) if start is None else start.scale_factor
    multiple, labelled = _multiple(lesson, bundle), bool(config.structure_weights)
    source = LatentSource(latents.training, recipe.latents.weights, multiple, labelled)
    unet = train_unet(
        config,
        source,
        build_scheduler(spec),
        scale_factor,
        folder / "diffusion",
        _named(on_step, "diffusion"),
        start=None if start is None else start.unet,
        held_out=held_out(bundle, config, latents, folder / "diffusion", None, multiple),
    )
    update = {
        "scheduler": spec,
        "scale_factor": scale_factor,
        "classes": _classes(bundle, config),
        "dropped": ("labels", *_dropped(config, unet.config)),  # it never saw any
    }
    info = bundle.info.model_copy(update=update)
    stale = () if start is not None else ("controlnet",)  # one that steers another U-Net
    return with_networks(bundle, info, {"unet": unet.cpu()}, without=stale)


def controlnet_stage(
    lesson: Lesson, bundle: Bundle, latents: Encoded, folder: Path, on_step: OnStep | None = None
) -> Bundle:
    """The bundle with a ControlNet for its U-Net; with `train_unet` the U-Net has learned along.

    One that starts from a bundle keeps that one's limits, and what it is shown and how strongly, where the recipe does
    not say.
    """
    recipe, config = lesson.recipe, lesson.recipe.for_controlnet()
    latents = latents.drawn(recipe.latents.weights)
    assert bundle.info.scheduler is not None
    start, multiple = starting_bundle(recipe, config, bundle, "controlnet"), bundle.unet.config.size_multiple
    if start is None and config.controlnet is None:
        like = controlnet_like(bundle.unet.config, bundle.autoencoder.factor)
        config = config.model_copy(update={"controlnet": like})
    shown_as = recipe.shown_as if recipe.shown_as is not None else {} if start is None else start.info.shown_as
    controlnet, unet = train_controlnet(
        config,
        bundle.unet,
        latent_source(latents.training, recipe.latents.weights, multiple, shown_as),
        build_scheduler(bundle.info.scheduler),
        bundle.info.scale_factor,
        folder / "controlnet",
        _named(on_step, "controlnet"),
        start=None if start is None else start.controlnet,
        held_out=held_out(bundle, config, latents, folder / "controlnet", shown_as, multiple),
    )
    scale = 1.0 if start is None else start.info.controlnet_scale
    update = {
        "controlnet_scale": scale if recipe.controlnet_scale is None else recipe.controlnet_scale,
        "shown_as": shown_as,
        "limits": recipe.limits if start is None else start.limits,
        "classes": _classes(bundle, config),
    }
    if config.train_unet:
        update["dropped"] = ("labels",) * (config.drop_labels > 0) + _dropped(config, unet.config)
    info = bundle.info.model_copy(update=update)
    return with_networks(bundle, info, {"unet": unet.cpu(), "controlnet": controlnet.cpu()})


def _dropped(config: DiffusionTraining, network: UNetConfig) -> tuple[Condition, ...]:
    """The conditions that a U-Net takes and that its training leaves out at times."""
    chances: dict[Condition, float] = {
        "region": config.drop.region * network.regions,
        "spacing": config.drop.spacing * network.spacing,
        "modality": config.drop.modality * (network.num_modalities is not None),
    }
    return tuple(name for name, chance in chances.items() if chance > 0)


def starting_bundle(recipe: BundleRecipe, config: DiffusionTraining, bundle: Bundle, network: str) -> Bundle | None:
    """The bundle whose network goes on learning, None for a fresh one.

    Raises `InvalidRequestError` where it has no such network, another than the recipe describes, another schedule, or
    latents of an autoencoder other than `bundle`'s, and where a fresh ControlNet would not fit the U-Net of `bundle`.
    """
    if config.start_from is None:
        if isinstance(config, ControlNetTraining) and config.controlnet is not None:
            check_levels(bundle.unet.config, config.controlnet)
        return None
    start = load_bundle(config.start_from)
    if network not in start.names:
        there = ", ".join(start.names)
        raise InvalidRequestError(f"bundle {start.name} has no {network} to start from; it has {there}")
    if network == "unet":
        check_unet(config.network, start.unet.config)
        if recipe.scheduler is not None and recipe.scheduler != start.info.scheduler:
            raise InvalidRequestError(
                f"bundle {start.name} was trained by another schedule than the recipe's; leave scheduler out to keep it"
            )
    elif isinstance(config, ControlNetTraining):
        check_levels(bundle.unet.config, start.controlnet.config)
        check_occupancies(start.controlnet.config, config.seeing(config.controlnet or start.controlnet.config))
    if "autoencoder" in start.names and not _is_same(start.autoencoder, bundle.autoencoder):
        raise InvalidRequestError(
            f"bundle {start.name} has another autoencoder than {bundle.name}, so that its {network} knows other "
            f"latents; give --bundle {config.start_from}"
        )
    return start


def _is_same(a: nn.Module, b: nn.Module) -> bool:
    return weights_digest(a.state_dict()) == weights_digest(b.state_dict())


def held_out(
    bundle: Bundle,
    config: DiffusionTraining,
    latents: Encoded,
    folder: Path,
    shown_as: Mapping[str, str] | None,
    multiple: int,
) -> HeldOut | None:
    """What a training in `folder` looks at between its steps; None where it does not, or has no cases for it."""
    if not config.loop.validate_every:
        return None
    if latents.validation is None:
        logger.warning("no case is for validation: %s learns unwatched", folder.name)
        return None
    source = latent_source(latents.validation, {}, multiple, shown_as)  # one case after the other
    return HeldOut.of(config.validation, source, config.sizes, folder / "pictures", bundle.autoencoder)


def _classes(bundle: Bundle, config: DiffusionTraining) -> dict[int, str]:
    return bundle.info.classes | numbered(config.classes)


def latent_source(
    latents: LatentStore, weights: Mapping[str, float], multiple: int, shown_as: Mapping[str, str] | None
) -> LatentSource:
    """Batches of latents, with labels as the ControlNet is shown them; without `shown_as` labels are not needed."""
    if shown_as is None:
        return LatentSource(latents, weights, multiple, labelled=False)
    return LatentSource(latents.with_change(lambda latent: as_shown(latent, shown_as)), weights, multiple)


def with_networks(
    bundle: Bundle, info: BundleInfo, networks: Mapping[str, nn.Module], without: Collection[str] = ()
) -> Bundle:
    """The bundle with other information, and with networks added, left out, or in place of those of the same name."""
    kept = {name: bundle.network(name) for name in bundle.names if name not in {*networks, *without}}
    return Bundle.of(info, {**kept, **networks}, model_card=bundle.model_card, licence_text=bundle.licence_text)


def centred_autoencoder(
    autoencoder: Autoencoder, source: PatchSource, batch: int, patch: tuple[int, int, int], seed: int
) -> Autoencoder:
    """The same autoencoder with latents of mean zero in every channel, as the noise has that they are made from.

    The mean is that of patches of the training cases. What the last bias of the encoder takes away, the first one of
    the decoder puts back: volumes do not change.
    """
    sums, count = torch.zeros(autoencoder.config.latent_channels, dtype=torch.float64), 0
    with torch.inference_mode():
        for draw in range(CENTRING_DRAWS):
            mean, _ = autoencoder.encode(source.draw(batch, patch, step_generators(seed, draw)[1]).images)
            sums += mean.double().sum((0, 2, 3, 4))
            count += mean[:, 0].numel()
    return shifted(autoencoder, sums / count)


def shifted(autoencoder: Autoencoder, mean: torch.Tensor) -> Autoencoder:
    """The same autoencoder with latents that are less by `mean` (c,) everywhere; volumes do not change."""
    moved = copy.deepcopy(autoencoder)
    encoding, decoding = moved.to_mean.bias, moved.from_latent.bias
    assert encoding is not None
    assert decoding is not None
    with torch.no_grad():
        encoding -= mean.to(encoding)
        weight = moved.from_latent.weight[:, :, 0, 0, 0].double()
        decoding += (weight @ mean.to(weight.device)).to(decoding)
    return moved


def save_measured(bundle: Bundle, lesson: Lesson, folder: Path) -> Path:
    """Save a bundle as float16, measure it as it will be loaded, and save it again with its model card."""
    path = save_bundle(bundle, folder / "bundle", dtype=torch.float16, overwrite=True)
    labelled = [*lesson.training, *lesson.validation]
    samples = lesson.recipe.measured_samples
    quality = measure_bundle(load_bundle(path), lesson.validation, labelled, samples, on_case=logger.info)
    if lesson.recipe.measured_realism:
        found = measure_realism(load_bundle(path), lesson.validation, lesson.training, on_case=logger.info)
        quality = quality.model_copy(update={"realism": found})
    write_quality(quality, folder / "quality.json")
    licence = f"{bundle.info.licence}\nAttribution: see MODEL_CARD.md\n"
    loaded = load_bundle(path)
    card = model_card(loaded, quality, lesson.training, lesson.recipe.expectations)
    carded = dataclasses.replace(loaded, model_card=card, licence_text=licence)
    return save_bundle(carded, folder / "bundle", dtype=torch.float16, overwrite=True)


def _info(recipe: BundleRecipe) -> BundleInfo:
    return BundleInfo(
        name=recipe.name,
        description=recipe.description,
        licence=recipe.licence,
        vocabulary_version=load_vocabulary().version,
        limits=recipe.limits,
    )


def _named(on_step: OnStep | None, stage: str) -> Callable[[int, Mapping[str, float]], None] | None:
    return None if on_step is None else (lambda step, metrics: on_step(stage, step, metrics))
