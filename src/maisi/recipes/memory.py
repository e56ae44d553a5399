"""What a step of each training of a recipe holds in memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.anatomy.bits import NUM_BITS
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle
from maisi.diffusion.denoiser import predict
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.build import NetworkConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.discriminator import PatchDiscriminator
from maisi.networks.segmenter import SegmentationUNet
from maisi.networks.trunks import OrientedEdges, SqueezeNet
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.pipelines.label_codec import label_channels
from maisi.recipes.recipe import BundleRecipe, LabelsRecipe
from maisi.shapes import Size3
from maisi.training.autoencoder import AutoencoderTraining
from maisi.training.controlnet import ControlNetTraining, controlnet_like
from maisi.training.diffusion import DiffusionTraining
from maisi.training.losses import FeatureNetwork, perceptual_loss
from maisi.training.memory import StepMemory, step_memory
from maisi.training.segmenter import SegmenterTraining
from maisi.training.slabs import Slabs, gathered


def training_memory(
    recipe: BundleRecipe,
    processes: int | None = None,
    parts: Sequence[str] | None = None,
    before: Bundle | None = None,
    volume: Size3 | None = None,
) -> dict[str, StepMemory]:
    """The memory of a step at its largest patch or latent, one batch of those that add up, by the parts of a recipe.

    They are all that the recipe has, unless `parts` are named. Networks that go before are those of the bundle
    `before`, else the recipe's, else the released ones. Where all of a case is taken, the largest has the voxels of
    `volume`, else as many as the recipe allows. The memory is that of each of `processes` that train together; by
    default of one, or of as many as there are slabs (`optimization.slabs`).
    """
    volume = volume or largest_volume(recipe)
    given = {} if before is None else before.configs
    counted: dict[str, Callable[[], StepMemory]] = {}
    if recipe.autoencoder is not None:
        counted["autoencoder"] = partial(_of_autoencoder, recipe.autoencoder, processes)
    if recipe.diffusion is not None:
        size = _largest(recipe.diffusion, _unet_of(recipe.diffusion), volume, _factor(recipe, given))
        counted["diffusion"] = partial(_of_denoiser, recipe.diffusion, size, processes)
    if recipe.controlnet is not None:
        counted["controlnet"] = partial(_of_controlnet, recipe, recipe.controlnet, given, volume, processes)
    if recipe.segmenter is not None:
        counted["segmenter"] = partial(_of_segmenter, recipe.segmenter, processes)
    if recipe.labels is not None:
        counted["label_autoencoder"] = partial(_of_label_autoencoder, recipe.labels)
        counted["label_diffusion"] = partial(_of_label_unet, recipe.labels)
    with torch.device("meta"):
        return {part: count() for part, count in counted.items() if parts is None or part in parts}


def largest_volume(recipe: BundleRecipe) -> Size3:
    """The most voxels that a case may have whose latent is taken whole."""
    return recipe.limits.max_size if recipe.latents.as_prepared else recipe.latents.max_size


def check_goes_before(bundle: Bundle, *needed: str) -> None:
    """Nothing, or an `InvalidRequestError` where a bundle lacks a network that goes before a training."""
    lacking = [name for name in needed if name not in bundle.names]
    if lacking:
        there = ", ".join(bundle.names)
        raise InvalidRequestError(f"bundle {bundle.name} has no {lacking[0]}, which goes before; it has {there}")


def _of_autoencoder(config: AutoencoderTraining, processes: int | None) -> StepMemory:
    network = Autoencoder(config.network)
    critic = PatchDiscriminator(config.discriminator) if config.adversarial_weight > 0 else None
    networks = [network, *([critic] if critic is not None else [])]
    features = _features(config) if config.perceptual_weight > 0 else None

    def patches() -> Tensor:
        return torch.empty((config.batch_size, 1, *config.patch))

    def loss(slabs: Slabs) -> Tensor:
        real = patches()
        mean, log_variance = gathered(*network.encode(slabs.split(real)))
        (fake,) = gathered(network.decode(slabs.split(mean + log_variance.exp().sqrt() * torch.empty_like(mean))))
        total = (fake - real).abs().mean() + mean.square().mean() + log_variance.exp().mean()
        if features is not None:
            total = total + perceptual_loss(features, fake, real, config.perceptual_slices, torch.Generator("cpu"))
        if critic is not None:
            critic.requires_grad_(False)
            total = total + critic(fake)[-1].square().mean()
            critic.requires_grad_(True)
        return total

    def judged(slabs: Slabs) -> Tensor:
        assert critic is not None
        return critic(patches())[-1].square().mean() + critic(patches())[-1].square().mean()

    losses = [loss, *([judged] if critic is not None else [])]
    return step_memory(networks, networks, losses, config.optimization, processes)


def _features(config: AutoencoderTraining) -> FeatureNetwork:
    """The network of the perceptual loss, without its weights."""
    if not config.squeezenet:
        return OrientedEdges()
    network = SqueezeNet().requires_grad_(False)
    return lambda slices: network(slices.repeat(1, 3, 1, 1))


def _factor(recipe: BundleRecipe, before: Mapping[str, NetworkConfig]) -> int:
    """By how much the autoencoder that goes before makes a volume smaller."""
    found = before.get("autoencoder")
    if isinstance(found, AutoencoderConfig):
        return found.factor
    return (AutoencoderConfig() if recipe.autoencoder is None else recipe.autoencoder.network).factor


def _largest(config: DiffusionTraining, unet: UNetConfig, volume: Size3, factor: int) -> Size3:
    """The largest crop in latent voxels; where all of a case is taken, all of such a volume, in sizes of the U-Net."""
    if config.sizes:
        return max(config.sizes, key=math.prod)
    x, y, z = (-(-n // (factor * unet.size_multiple)) * unet.size_multiple for n in volume)
    return x, y, z


def _conditions(unet: UNetConfig, batch: int) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    if unet.regions:
        given |= {name: torch.empty((batch, 4)) for name in ("top_region", "bottom_region")}
    if unet.spacing:
        given["spacing"] = torch.empty((batch, 3))
    if unet.num_modalities is not None:
        given["modality"] = torch.zeros(batch, dtype=torch.long)
    if unet.context_channels is not None:
        given["context"] = torch.empty((batch, 1, unet.context_channels))
    return given


def _unet_of(config: DiffusionTraining) -> UNetConfig:
    """The U-Net that a training describes, or goes on with."""
    begun = _begun(config).get("unet")
    return config.network or (begun if isinstance(begun, UNetConfig) else UNetConfig())


def _begun(config: DiffusionTraining) -> Mapping[str, NetworkConfig]:
    """The configurations of the bundle that a training goes on with."""
    return {} if config.start_from is None else load_bundle(config.start_from).configs


def _of_denoiser(config: DiffusionTraining, size: Size3, processes: int | None = None) -> StepMemory:
    """That of a U-Net on latents of a size, alone."""
    unet, batch = DenoisingUNet(_unet_of(config)), config.batch_size

    def loss(slabs: Slabs) -> Tensor:
        noisy, times = torch.empty((batch, unet.config.in_channels, *size)), torch.empty(batch)
        told = _conditions(unet.config, batch)
        return gathered(predict(unet, None, slabs.split(noisy), times, conditions=told))[0].abs().mean()

    return step_memory([unet], [unet], [loss], config.optimization, processes)


def _of_controlnet(
    recipe: BundleRecipe,
    config: ControlNetTraining,
    before: Mapping[str, NetworkConfig],
    volume: Size3,
    processes: int | None,
) -> StepMemory:
    given, factor = before.get("unet"), _factor(recipe, before)
    ours = given if isinstance(given, UNetConfig) else _unet_of(recipe.diffusion or config)
    unet = DenoisingUNet(ours)
    begun = _begun(config).get("controlnet")
    like = config.controlnet or (begun if isinstance(begun, ControlNetConfig) else controlnet_like(ours, factor))
    controlnet = ControlNet(like)
    unet.requires_grad_(config.train_unet)
    size, batch = _largest(config, ours, volume, factor), config.batch_size

    def answered(slabs: Slabs) -> Tensor:
        noisy = torch.empty((batch, unet.config.in_channels, *size))
        bits = torch.empty((batch, like.condition_channels, *(n * like.condition_factor for n in size)))
        (seen,) = gathered(controlnet.embed_condition(slabs.split(bits)))
        noised, embedding = slabs.split(noisy), slabs.split(seen)
        told = _conditions(unet.config, batch)
        found = predict(unet, controlnet, noised, torch.empty(batch), conditions=told, embedding=embedding)
        return gathered(found)[0]

    def loss(slabs: Slabs) -> Tensor:
        answers = [answered(slabs) for _ in range(1 if config.contrast is None else 2)]  # with its lesions, and without
        return torch.stack([each.abs().mean() for each in answers]).sum()

    learning = [controlnet, *([unet] if config.train_unet else [])]
    as_given = [DenoisingUNet(unet.config)] if config.train_unet else []  # that of the bundle, which stays as it was
    return step_memory([controlnet, unet, *as_given], learning, [loss], config.optimization, processes)


def _of_segmenter(config: SegmenterTraining, processes: int | None) -> StepMemory:
    network = SegmentationUNet(config.network(load_vocabulary()))

    def loss(_: Slabs) -> Tensor:
        scores: Tensor = network(torch.empty((config.batch_size, 1, *config.patch)))
        return scores.log_softmax(1).mean()

    return step_memory([network], [network], [loss], config.optimization, processes)


def _of_label_autoencoder(recipe: LabelsRecipe) -> StepMemory:
    """With a score for every structure that maps may show, of which `found` leaves out some."""
    config = recipe.autoencoder
    every = tuple(sorted({0, *load_vocabulary().ids}))
    network = Autoencoder(config.for_channels(label_channels() if recipe.maps.channels == "released" else every))

    def loss(_: Slabs) -> Tensor:
        mean, log_variance = network.encode(torch.empty((config.batch_size, NUM_BITS, *config.patch)))
        scores = network.decode(mean + log_variance.exp().sqrt() * torch.empty_like(mean))
        wanted = torch.zeros((config.batch_size, *config.patch), dtype=torch.long)
        return F.cross_entropy(scores, wanted) + mean.square().mean() + log_variance.exp().mean()

    return step_memory([network], [network], [loss], config.optimization)


def _of_label_unet(recipe: LabelsRecipe) -> StepMemory:
    config, factor = recipe.diffusion, recipe.autoencoder.network.factor
    x, y, z = (n // factor for n in recipe.maps.size)
    return _of_denoiser(config, max(config.sizes, key=math.prod) if config.sizes else (x, y, z))
