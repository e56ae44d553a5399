"""Label maps drawn by a network from the sizes of organs and tumours (MAISI, arXiv 2409.11169, section 3.3).

Sizes and region -> latent -> ids -> mended -> on the grid that was asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from maisi.anatomy.fulfil import needed
from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.mending import mended
from maisi.anatomy.regions import RegionSpan, region_span
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.sizes import volume_of_size
from maisi.anatomy.slots import ABSENT, OPEN, check_sizes, measured_sizes, size_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.bundle.bundle import Bundle, LabelGeneratorInfo, build_scheduler, load_bundle
from maisi.compute.compute import Compute
from maisi.compute.fit import between_calls, fit
from maisi.compute.machine import device_of, dtype_of
from maisi.diffusion.denoiser import denoiser, guide
from maisi.diffusion.sampler import Denoise, sample
from maisi.errors import InvalidAnatomyError, InvalidBundleError, InvalidGridError, InvalidRequestError, NotDrawnError
from maisi.networks.autoencoder import Autoencoder
from maisi.networks.unet import DenoisingUNet
from maisi.pipelines.codec import as_weights
from maisi.pipelines.conditioning import condition_tensors
from maisi.pipelines.label_codec import channels_of, decode_ids
from maisi.pipelines.labels import Anatomy, GridRules, region_grid
from maisi.pipelines.requests import DEFAULT_LABEL_GENERATOR
from maisi.shapes import in_words
from maisi.space.grid import Grid
from maisi.space.smooth_labels import resample_smoothly
from maisi.space.volume import LabelMap

STEPS = 30


def generator_info(bundle: Bundle) -> LabelGeneratorInfo:
    """What the label generator of a bundle was trained for; `InvalidBundleError` where the bundle has none."""
    if bundle.info.label_generator is None:
        raise InvalidBundleError(
            f"bundle {bundle.name!r} draws no label maps; it holds {', '.join(bundle.names)}; accepted: "
            f"{DEFAULT_LABEL_GENERATOR}, a bundle that `maisi train labels` made, or `maisi convert` of upstream's "
            "mask generation checkpoints"
        )
    return bundle.info.label_generator


@dataclass(frozen=True, eq=False)
class GeneratedLabels:
    """Label maps that the networks of a bundle draw; a `LabelSource`.

    `sizes` are those asked for, 0 to 1 by name (`ABSENT` for none). What is not asked for is as the network likes, but
    for lesions, which are absent.
    """

    bundle: Bundle
    region: str
    grid: Grid
    sizes: Mapping[str, float] = field(default_factory=dict)
    steps: int = STEPS
    compute: Compute = field(default_factory=Compute)
    guidance: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        told = generator_info(self.bundle)
        check_asked(told, self.sizes, self.grid)
        if self.guidance != 1 and not told.open_sizes:
            raise InvalidRequestError("guidance needs a label generator that knows open sizes; accepted: 1, none")

    @property
    def span(self) -> RegionSpan:
        return RegionSpan.named(self.region)

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> Anatomy:
        """The anatomy of one sample; `NotDrawnError` where what was asked for has not come."""
        labels = resample_smoothly(self.draw_mended(generator), self.grid)
        missing = self.missing(labels)
        if missing:
            raise NotDrawnError(
                f"the label generator of bundle {self.bundle.name} drew no {', '.join(missing)}; accepted: a larger "
                "size, a region that shows it, or more --max-tries"
            )
        return Anatomy(self.grid, self._span_of(labels), labels)

    def draw_mended(self, generator: torch.Generator) -> LabelMap:
        """A map on the generator's own grid."""
        told, vocabulary = generator_info(self.bundle), load_vocabulary()
        latent = draw_latent(self, self.steps, generator)
        autoencoder = cast(Autoencoder, self.bundle.network(told.autoencoder))
        ids = decode_ids(autoencoder, latent / told.scale_factor, channels_of(self.bundle))
        asked = {vocabulary.id(name): size for name, size in self.sizes.items()}
        return mended(
            LabelMap(ids, Grid.centered(told.size, told.spacing_mm)),
            vocabulary,
            lesions=[id for id, size in asked.items() if size != ABSENT],
            absent=[id for id, size in asked.items() if size == ABSENT],
        )

    @property
    def conditions(self) -> dict[str, Tensor]:
        """What the U-Net is told."""
        told = generator_info(self.bundle)
        return self._told([self.sizes.get(name, unasked_size(told, name)) for name in told.sized])

    @property
    def open_conditions(self) -> dict[str, Tensor]:
        """The same with all sizes open, for guidance."""
        return self._told([OPEN] * len(generator_info(self.bundle).sized))

    def _told(self, sizes: Sequence[float]) -> dict[str, Tensor]:
        told = generator_info(self.bundle)
        unet = cast(DenoisingUNet, self.bundle.network(told.unet))
        return condition_tensors(self.span, told.spacing_mm, 0, unet.config, sizes)

    def missing(self, labels: LabelMap) -> list[str]:
        """The structures that were asked for and are not there."""
        asked = [name for name, size in self.sizes.items() if size not in (ABSENT, OPEN)]
        found = measured_sizes(labels, asked)
        return [name for name in asked if found[name] == ABSENT]

    def _span_of(self, labels: LabelMap) -> RegionSpan:
        """The region asked for where the network knows regions, else what the map shows."""
        unet = cast(DenoisingUNet, self.bundle.network(generator_info(self.bundle).unet))
        return self.span if unet.config.regions else region_span(labels)


def generated_source(
    name: str, region: str, rules: GridRules, anatomy: AnatomyRequest | None, compute: Compute
) -> GeneratedLabels:
    """Maps of the label generator of the bundle of that name; the usual grid of a region, as far as it draws it."""
    dtype = dtype_of(compute)
    bundle = load_bundle(name, device_of(compute), dtype, narrow_in_float32=dtype != torch.float32)
    told, grid = generator_info(bundle), region_grid(region, rules)
    if rules.size is None:
        most = (n * s / wanted for n, s, wanted in zip(told.size, told.spacing_mm, grid.spacing, strict=True))
        x, y, z = (min(n, int(m) // rules.multiple * rules.multiple) for n, m in zip(grid.shape, most, strict=True))
        grid = region_grid(region, replace(rules, size=(x, y, z)))
    if anatomy is not None:
        check_channels(bundle, anatomy)
    values = {} if anatomy is None else slot_values(anatomy, told)
    source = GeneratedLabels(bundle, region, grid, values, compute=compute)
    return replace(source, bundle=fit(bundle, compute, partial(rehearse, source)))


def draw_latent(source: GeneratedLabels, steps: int, generator: torch.Generator) -> Tensor:
    """A latent (1, c, u, v, w), times the scale factor; on "meta" nothing is computed."""
    bundle, told = source.bundle, generator_info(source.bundle)
    unet = cast(DenoisingUNet, bundle.network(told.unet))
    autoencoder = cast(Autoencoder, bundle.network(told.autoencoder))
    device, dtype = next(unet.parameters()).device, dtype_of(source.compute)

    def denoise(conditions: Mapping[str, Tensor]) -> Denoise:
        told = {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in conditions.items()}
        return denoiser(unet, conditions=told)

    guided = denoise(source.conditions)
    if source.guidance != 1:
        guided = guide(guided, denoise(source.open_conditions), source.guidance)
    shape = tuple(n // autoencoder.factor for n in told.size)
    noise = torch.randn((1, unet.config.in_channels, *shape), generator=generator)
    noise = noise.to(device).contiguous(memory_format=torch.channels_last_3d)
    with between_calls(source.compute):
        return sample(guided, build_scheduler(told.scheduler), noise, steps, generator=generator)


def rehearse(source: GeneratedLabels, bundle: Bundle) -> None:
    """One step and the decoding of a map on the meta device."""
    told = generator_info(bundle)
    latent = draw_latent(replace(source, bundle=bundle), 1, torch.Generator())
    autoencoder = cast(Autoencoder, bundle.network(told.autoencoder))
    with torch.inference_mode():
        autoencoder.decode_features(as_weights(latent, autoencoder))


def slot_values(anatomy: AnatomyRequest, told: LabelGeneratorInfo) -> dict[str, float]:
    """The numbers of `GeneratedLabels.sizes` for what is asked for; a lesion that was not learned is absent.

    What is only to be there is of the size that nobody asked for, a lesion of a middling one.
    """
    vocabulary, values = load_vocabulary(), {}
    for name in told.sized:
        id = vocabulary.id(name)
        is_learned = name in told.lesions or id not in lesion_ids(vocabulary)
        if id in anatomy.absent or (id in anatomy.wanted and not is_learned):
            values[name] = ABSENT
        elif id in anatomy.sized:
            values[name] = size_of(name, anatomy.sized[id])
        elif id in anatomy.present:
            is_lesion = id in anatomy.lesions
            values[name] = size_of(name, volume_of_size(id, 0.5, vocabulary)) if is_lesion else unasked_size(told, name)
    return values


def unasked_size(told: LabelGeneratorInfo, name: str) -> float:
    """The size of a structure that nobody asked for: none of a lesion; else open, or the usual one of an adult."""
    vocabulary = load_vocabulary()
    if "tumours" in vocabulary.structure(name).groups:
        return ABSENT
    return OPEN if told.open_sizes else size_of(name, vocabulary.places[name].ml[0])


def check_channels(bundle: Bundle, anatomy: AnatomyRequest) -> None:
    """Nothing, or the refusal of what no map of a generator shows: organs, and hosts of tumours that are planted."""
    channels, vocabulary = channels_of(bundle), anatomy.vocabulary
    lacking = [name for name, ids in needed(anatomy).items() if ids.isdisjoint(channels)]
    if lacking:
        drawn = sorted(vocabulary.name(id) for id in channels if id and id in vocabulary.ids)
        raise InvalidAnatomyError(
            f"the label generator of bundle {bundle.name} draws no {' and no '.join(lacking)}; accepted: "
            f"{', '.join(name for name in drawn if name != 'body')}"
        )


def check_asked(told: LabelGeneratorInfo, sizes: Mapping[str, float], grid: Grid) -> None:
    """Nothing, or the refusal of sizes or of a grid that the generator cannot draw."""
    check_sizes(sizes, told.sized)
    for name, size in sizes.items():
        if "tumours" in load_vocabulary().structure(name).groups and size != ABSENT and name not in told.lesions:
            learned = ", ".join(told.lesions) or "none"
            raise InvalidRequestError(
                f"this label generator has not learned {name}; lesions that it has: {learned}; accepted: maps without, "
                "into which `maisi labels augment` plants one"
            )
        if size == OPEN and not told.open_sizes:
            raise InvalidRequestError(f"this label generator needs a size of {name}; accepted: 0 to 1, or none")
    most = tuple(n * s for n, s in zip(told.size, told.spacing_mm, strict=True))
    if any(asked > there + 1e-3 for asked, there in zip(grid.fov_mm, most, strict=True)):
        shown = (in_words(fov) for fov in (grid.fov_mm, most))
        raise InvalidGridError(
            "a field of view of {} mm is larger than the {} mm that this label generator draws; accepted: --size and "
            "--spacing within them".format(*shown)
        )
