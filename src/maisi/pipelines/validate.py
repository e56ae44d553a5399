"""What a request needs before any network computes: its bundle and its input, checked. From Python and the command line
alike."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch

from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.vocabulary import Vocabulary, extended, load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle
from maisi.bundle.places import find_bundle, lasting_name_of, packaged_names
from maisi.compute.compute import Compute, format_bytes
from maisi.compute.fit import PROCESS_BYTES, check_format, check_scratch, precision_of
from maisi.compute.machine import device_of, dtype_of, fill_defaults
from maisi.data.door import open_labels, open_volume
from maisi.data.label_maps import is_one_map
from maisi.data.latents import Latent, read_latent
from maisi.data.library import Library
from maisi.errors import InvalidBundleError, InvalidPlanError, InvalidRequestError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.unet import UNetConfig
from maisi.pipelines.asked import asked
from maisi.pipelines.conditioning import Conditioning, encode_conditioning, modality_code
from maisi.pipelines.guidance import check_guidance
from maisi.pipelines.label_codec import channels_of, label_autoencoder_name, takes_labels
from maisi.pipelines.label_generator import generated_source
from maisi.pipelines.labels import (
    GridRules,
    LabelRules,
    LabelSource,
    NoLabels,
    PhantomLabels,
    file_source,
    folder_sources,
    region_grid,
)
from maisi.pipelines.library import LibraryLabels, library_source, people_source
from maisi.pipelines.quality.segmenter import segmenter_of
from maisi.pipelines.requests import (
    DEFAULT_REGION,
    DecodeRequest,
    EncodeRequest,
    GenerateLabelsRequest,
    GenerateRequest,
    PlanRequest,
)
from maisi.shapes import in_words
from maisi.space.files import log_findings
from maisi.space.grid import Grid
from maisi.space.reading import FileReport
from maisi.space.resample import resample, with_spacing
from maisi.space.volume import LabelMap, Volume

logger = logging.getLogger(__name__)

MOST_VOXELS = 4_000_000_000
"""More than any scan has: 1600 voxels along each axis."""

Request = TypeVar("Request", GenerateRequest, GenerateLabelsRequest, EncodeRequest, DecodeRequest, PlanRequest)


@dataclass(frozen=True)
class ValidRequest:
    """A generate request that can be carried out, all that it left open filled in."""

    request: GenerateRequest
    bundle: Bundle
    sources: tuple[LabelSource, ...]

    @property
    def reports(self) -> tuple[FileReport, ...]:
        """What was found in the label maps that were read."""
        found = (getattr(source, "report", None) for source in self.sources)
        return tuple(report for report in found if report is not None)


def validate_generate(request: GenerateRequest, bundle: Bundle | None = None) -> ValidRequest:
    """The request, its bundle and its label sources; networks are not loaded yet.

    A bundle given from Python goes before the request's; one that the request names must then be the same. Raises
    `InvalidRequestError` (or a kind of it) for all that can be known to be impossible.
    """
    compute = compute_for(request.compute, bundle)
    request = request.model_copy(update={"compute": compute})
    bundle = bundle_of(request, bundle)
    request = _without_foreign_labels(request, bundle)
    sources = label_sources(request, bundle)
    for source in sources:
        _check_source(request, bundle, source)
    segmenter_of(request.quality)  # refuses a bundle that is none
    return ValidRequest(_filled(request, bundle, sources), bundle, tuple(sources))


def compute_for(compute: Compute, bundle: Bundle | None) -> Compute:
    """The compute settings with defaults filled in; a bundle from Python computes in the precision it is in."""
    if bundle is not None and compute.precision is None:
        compute = compute.model_copy(update={"precision": precision_of(bundle)})
    compute = fill_defaults(compute)
    check_scratch(compute)
    return compute


def bundle_of(request: Request, given: Bundle | None = None) -> Bundle:
    """The bundle of a request that makes CTs, see `load_for`; `InvalidBundleError` where no autoencoder takes CTs."""
    bundle = load_for(request, given)
    check_takes_ct(bundle)
    return bundle


def load_for(request: Request, given: Bundle | None = None) -> Bundle:
    """The bundle of a request, in its precision on its device.

    A bundle that is given is checked instead: it must be the one that the request names, if it names one, be on its
    device and in its precision.
    """
    dtype, device = dtype_of(request.compute), device_of(request.compute)
    if given is not None:
        _check_given(request, given, device)
        return given
    return load_bundle(request.bundle, device, dtype, narrow_in_float32=dtype != torch.float32)


def check_takes_ct(bundle: Bundle) -> None:
    """Nothing, or an `InvalidBundleError` where no autoencoder takes and gives CTs."""
    if "autoencoder" not in bundle.kinds:
        raise InvalidBundleError(f"bundle {bundle.name!r} has no autoencoder; it holds {', '.join(bundle.names)}")
    config = cast(AutoencoderConfig, bundle.configs["autoencoder"])
    if (config.in_channels, config.out_channels) != (1, 1):
        raise InvalidBundleError(
            f"the autoencoder of bundle {bundle.name!r} takes {config.in_channels} channels and gives "
            f"{config.out_channels} (label maps); accepted: a bundle whose autoencoder takes and gives a CT, 1 channel"
        )


def _check_given(request: Request, bundle: Bundle, device: torch.device) -> None:
    """Nothing, or the refusal of a bundle from Python that is not what its request says."""
    if "bundle" in request.model_fields_set and request.bundle != bundle.name:
        named = find_bundle(request.bundle)
        if bundle.path is None or named.resolve() != bundle.path.resolve():
            raise InvalidBundleError(
                f"the request names bundle {request.bundle!r}, but bundle {bundle.name!r} is given; accepted: the same "
                "one, or a request without bundle"
            )
    for name in bundle.names:
        weights = next(bundle.network(name).parameters())
        if weights.device.type != device.type:
            raise InvalidRequestError(
                f"the request computes on {device}, the {name} of the bundle is on {weights.device}; accepted: "
                f'Compute(device="{weights.device}"), or load_bundle(..., device="{device}")'
            )
        check_format(bundle.network(name), name, dtype_of(request.compute))


def check_modality(bundle: Bundle, modality: str, force: bool) -> None:
    """Nothing, or an `InvalidRequestError` for an unknown modality, and without `force` one not trained for."""
    modality_code(modality)  # refuses one that nobody knows
    if modality in bundle.limits.modalities or force:
        return
    known = ", ".join(bundle.limits.modalities)
    raise InvalidRequestError(
        f"bundle {bundle.name!r} was not trained for modality {modality!r}; accepted: {known}; --force goes on"
    )


def lasting_name(name: str, bundle: Bundle) -> str:
    """The bundle's name where it is packaged, else its absolute path."""
    if bundle.path is None or name in packaged_names():
        return name
    return str(bundle.path.resolve())


# Generating -----------------------------------------------------------------------------------------------------------


def label_sources(request: GenerateRequest, bundle: Bundle) -> list[LabelSource]:
    """The label sources that a request names, on grids that the bundle can make.

    Raises `InvalidBundleError` for a bundle without autoencoder or U-Net; for labels, what `file_source` raises; for
    anatomy that cannot be, `InvalidAnatomyError`.
    """
    missing = [kind for kind in ("autoencoder", "unet") if kind not in bundle.kinds]
    if missing:
        raise InvalidBundleError(f"bundle {bundle.name!r} cannot generate: it has no {' and no '.join(missing)}")
    vocabulary = bundle_vocabulary(bundle)
    anatomy = AnatomyRequest.parse(request.anatomy, vocabulary) if request.anatomy else None
    sources = _plain_sources(request, bundle, anatomy)
    if anatomy is not None:
        return [asked(source, anatomy) for source in sources]
    nothing = AnatomyRequest.parse((), vocabulary)  # lesions of a library's maps that nobody asked for go
    return [asked(source, nothing) if isinstance(source, LibraryLabels) else source for source in sources]


def _plain_sources(request: GenerateRequest, bundle: Bundle, anatomy: AnatomyRequest | None) -> Sequence[LabelSource]:
    """The sources as they are, before anything is changed in what they draw."""
    rules = GridRules(bundle.limits, bundle.size_multiple, request.size, request.spacing, request.force)
    if request.labels is not None:
        vocabulary = bundle_vocabulary(bundle)
        placed = LabelRules(rules, request.region, request.enclose, request.reading, vocabulary, anatomy)
        if request.labels.is_dir() and not is_one_map(request.labels):
            return folder_sources(request.labels, placed)
        return [file_source(request.labels, placed)]
    region = request.region or DEFAULT_REGION
    if request.label_bundle is not None:
        return [generated_source(request.label_bundle, region, rules, anatomy, request.compute)]
    grid = region_grid(region, rules)
    if request.library is not None:
        library = Library.read(request.library)
        return [library_source(library, region, grid, anatomy, request.min_distance, request.enclose)]
    if request.unlabelled:
        return [NoLabels(region, grid)]
    people = None if request.phantom else people_source(region, grid, anatomy)
    return [people or PhantomLabels(region, grid)]


def bundle_vocabulary(bundle: Bundle) -> Vocabulary:
    """The vocabulary with the classes that a bundle declares beyond it."""
    classes = bundle.info.classes
    return extended(load_vocabulary(), classes) if classes else load_vocabulary()


def _without_foreign_labels(request: GenerateRequest, bundle: Bundle) -> GenerateRequest:
    """The request for a bundle that may have no ControlNet: it makes images only, and follows no labels."""
    if "controlnet" in bundle.kinds or "unet" not in bundle.kinds or request.unlabelled:
        return request
    if request.labels is not None or request.library is not None or request.anatomy:
        raise InvalidBundleError(
            f"bundle {bundle.name!r} has no ControlNet and cannot follow labels; accepted: --unlabelled for images "
            "without labels, or a bundle with a ControlNet"
        )
    logger.warning(
        "bundle %r has no ControlNet: its images follow no labels, and none are written (--unlabelled)", bundle.name
    )
    return request.model_copy(update={"unlabelled": True})


def _check_source(request: GenerateRequest, bundle: Bundle, source: LabelSource) -> None:
    """Nothing, or the refusal of what the networks, the schedule or the training of the bundle do not allow."""
    check_modality(bundle, request.modality, request.force)
    if request.unlabelled and not bundle.limits.unlabelled and not request.force:
        raise InvalidRequestError(
            f"bundle {bundle.name!r} was not trained to make images that follow no labels: they show no anatomy; "
            "accepted: images that follow labels, or another bundle; --force goes on"
        )
    config = cast(UNetConfig, bundle.configs["unet"])
    encode_conditioning(Conditioning(source.span, source.grid.spacing, request.modality), config)
    bundle.scheduler.timesteps(request.steps, num_voxels=math.prod(source.grid.shape))  # refuses too many
    check_guidance(request, bundle)
    foreign = [r.name.lower() for r in source.span.regions if r.name.lower() not in bundle.limits.regions]
    if foreign and not request.force:
        raise InvalidRequestError(
            f"bundle {bundle.name!r} was not trained for {' and '.join(foreign)}; accepted: "
            f"{', '.join(bundle.limits.regions)}; --force goes on"
        )


def _filled(request: GenerateRequest, bundle: Bundle, sources: list[LabelSource]) -> GenerateRequest:
    """The request with all that it left open filled in, so that it says the same anywhere on this machine."""
    scale = bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale
    one_grid = None if sources[0].name else sources[0].grid
    return request.model_copy(
        update={
            "bundle": lasting_name(request.bundle, bundle),
            "labels": request.labels and request.labels.resolve(),
            "library": request.library and request.library.resolve(),
            "label_bundle": request.label_bundle and lasting_name_of(request.label_bundle),
            "region": request.region or (None if request.labels else DEFAULT_REGION),
            "controlnet_scale": scale,
            "size": request.size if one_grid is None else one_grid.shape,
            "spacing": one_grid.spacing if one_grid is not None and request.spacing is None else request.spacing,
        }
    )


# Encoding and decoding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValidImage:
    """An encode request that can be carried out, and the volume or label map that it encodes."""

    request: EncodeRequest
    bundle: Bundle
    image: Volume | LabelMap
    report: FileReport


def validate_encode(request: EncodeRequest, bundle: Bundle | None = None) -> ValidImage:
    """The request, its bundle and the image to encode, resampled where the request says so.

    A bundle whose autoencoder is one of label maps takes a label map. Warns of a spacing that the bundle was not
    trained for. Raises `InvalidRequestError` as `validate_generate`.
    """
    if request.source is None:
        raise InvalidRequestError("nothing to encode; accepted: a CT, or cases by --manifest")
    request = request.model_copy(update={"compute": compute_for(request.compute, bundle)})
    bundle = load_for(request, bundle)
    assert request.source is not None
    image: Volume | LabelMap
    if request.content == "labels" or (request.content is None and encodes_labels(bundle)):
        label_autoencoder_name(bundle)  # refuses a bundle without
        read, report = open_labels(request.source, request.reading, bundle_vocabulary(bundle))
        image = read if request.spacing is None else resample(read, _wanted_grid(read.grid, request))
    else:
        check_takes_ct(bundle)
        check_modality(bundle, request.reading.modality, request.force)
        volume, report = open_volume(request.source, request.reading)
        image = volume if request.spacing is None else resample(volume, _wanted_grid(volume.grid, request))
    log_findings(request.source, report.findings)
    for sentence in bundle.limits.violations((1, 1, 1), image.grid.spacing):
        if sentence.startswith("spacing"):
            logger.warning("%s; --spacing resamples first", sentence)
    update = {
        "bundle": lasting_name(request.bundle, bundle),
        "source": request.source.resolve(),
        "content": "labels" if isinstance(image, LabelMap) else "volume",
    }
    return ValidImage(request.model_copy(update=update), bundle, image, report)


def _wanted_grid(grid: Grid, request: EncodeRequest) -> Grid:
    """The grid of the spacing that a request asks for, or the refusal of one that does not fit into its memory.

    A volume that is resampled is there twice, in float32.
    """
    assert request.spacing is not None
    wanted = with_spacing(grid, request.spacing)
    memory, needed = request.compute.memory, PROCESS_BYTES + 2 * 4 * wanted.num_voxels
    size = in_words(wanted.shape)
    if memory is not None and needed > memory:
        megabytes = -(-needed // 10**6)
        raise InvalidPlanError(
            f"a spacing of {in_words(request.spacing)} mm makes {size} voxels, which do not fit "
            f"into {format_bytes(memory)}; accepted: a larger spacing, or --memory {megabytes}MB or more",
            megabytes * 10**6,
        )
    if wanted.num_voxels > MOST_VOXELS:
        raise InvalidRequestError(
            f"a spacing of {in_words(request.spacing)} mm makes {size} voxels; accepted: a spacing "
            f"that makes at most {MOST_VOXELS:.2g}"
        )
    return wanted


@dataclass(frozen=True)
class ValidLatent:
    """A decode request that can be carried out, and the latent that it decodes."""

    request: DecodeRequest
    bundle: Bundle
    latent: Latent


def validate_decode(request: DecodeRequest, bundle: Bundle | None = None) -> ValidLatent:
    """The request, its bundle and the latent to decode. Raises `InvalidRequestError` as `validate_generate`."""
    request = request.model_copy(update={"compute": compute_for(request.compute, bundle)})
    latent = read_latent(request.source)
    bundle = load_for(request, bundle)
    if latent.content == "labels":
        label_autoencoder_name(bundle)
    else:
        latent = replace(latent, modality=request.modality or latent.modality)
        check_takes_ct(bundle)
        check_modality(bundle, latent.modality, request.force)
    update = {"bundle": lasting_name(request.bundle, bundle), "source": request.source.resolve()}
    return ValidLatent(request.model_copy(update=update), bundle, latent)


def encodes_labels(bundle: Bundle) -> bool:
    """Whether the autoencoder of a bundle is one of label maps."""
    config = bundle.configs.get("autoencoder", bundle.configs.get("label_autoencoder"))
    return isinstance(config, AutoencoderConfig) and takes_labels(config, channels_of(bundle))
