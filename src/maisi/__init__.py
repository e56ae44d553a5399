"""Synthetic 3-D CT volumes with matching organ and tumour labels.

The names below are imported when they are first used: `import maisi` alone loads neither torch nor numpy.
"""
# ruff: noqa: F401 (names for type checkers; a test keeps them equal to those of _HOMES)

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "maisi.anatomy.regions": ("BodyRegion", "RegionSpan", "region_span"),
    "maisi.anatomy.vocabulary": ("Structure", "Vocabulary", "load_vocabulary"),
    "maisi.bundle.bundle": ("Bundle", "BundleInfo", "Limits", "load_bundle", "save_bundle"),
    "maisi.bundle.places": ("packaged_names",),
    "maisi.compute.compute": ("Compute",),
    "maisi.data.latents": ("Latent", "read_latent", "write_latent"),
    "maisi.diffusion.sampler": ("sample",),
    "maisi.diffusion.scheduler": ("DDPM", "DDPMConfig", "NoiseScheduler", "RectifiedFlow", "RectifiedFlowConfig"),
    "maisi.errors": (
        "InvalidBundleError",
        "InvalidConfigError",
        "InvalidGridError",
        "InvalidLabelsError",
        "InvalidPlanError",
        "InvalidRequestError",
        "InvalidVolumeError",
        "MaisiError",
        "RunError",
        "StorageError",
    ),
    "maisi.evaluation.fidelity": ("Fidelity", "fidelity"),
    "maisi.networks.autoencoder": ("Autoencoder", "AutoencoderConfig"),
    "maisi.networks.controlnet": ("ControlNet", "ControlNetConfig"),
    "maisi.networks.unet": ("DenoisingUNet", "UNetConfig"),
    "maisi.pipelines.codec": ("decode", "encode"),
    "maisi.pipelines.dataset": ("MixedDataset", "SyntheticDataset", "Synthesized"),
    "maisi.pipelines.generate": ("Sample", "generate"),
    "maisi.pipelines.inpaint": ("Inpainted", "inpaint"),
    "maisi.pipelines.inpaint_request": ("InpaintRequest",),
    "maisi.pipelines.preview": ("preview",),
    "maisi.pipelines.refine": ("Refined", "refine"),
    "maisi.pipelines.refine_request": ("RefineRequest",),
    "maisi.runs.carry_out": ("carry_out",),
    "maisi.phantom.draw": ("draw_phantom",),
    "maisi.phantom.render": ("render_phantom",),
    "maisi.pipelines.requests": ("DecodeRequest", "EncodeRequest", "GenerateRequest"),
    "maisi.space.files": ("read_volume", "write_labels", "write_volume"),
    "maisi.space.label_files": ("read_labels",),
    "maisi.space.grid": ("Grid",),
    "maisi.space.resample": ("crop", "fit", "pad", "resample", "with_spacing"),
    "maisi.space.volume": ("LabelMap", "Volume"),
    "maisi.splitting.slabs": ("SlabTensor",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]

if TYPE_CHECKING:
    from maisi.anatomy.regions import BodyRegion, RegionSpan, region_span
    from maisi.anatomy.vocabulary import Structure, Vocabulary, load_vocabulary
    from maisi.bundle.bundle import Bundle, BundleInfo, Limits, load_bundle, save_bundle
    from maisi.bundle.places import packaged_names
    from maisi.compute.compute import Compute
    from maisi.data.latents import Latent, read_latent, write_latent
    from maisi.diffusion.sampler import sample
    from maisi.diffusion.scheduler import DDPM, DDPMConfig, NoiseScheduler, RectifiedFlow, RectifiedFlowConfig
    from maisi.errors import (
        InvalidBundleError,
        InvalidConfigError,
        InvalidGridError,
        InvalidLabelsError,
        InvalidPlanError,
        InvalidRequestError,
        InvalidVolumeError,
        MaisiError,
        RunError,
        StorageError,
    )
    from maisi.evaluation.fidelity import Fidelity, fidelity
    from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
    from maisi.networks.controlnet import ControlNet, ControlNetConfig
    from maisi.networks.unet import DenoisingUNet, UNetConfig
    from maisi.phantom.draw import draw_phantom
    from maisi.phantom.render import render_phantom
    from maisi.pipelines.codec import decode, encode
    from maisi.pipelines.dataset import MixedDataset, Synthesized, SyntheticDataset
    from maisi.pipelines.generate import Sample, generate
    from maisi.pipelines.inpaint import Inpainted, inpaint
    from maisi.pipelines.inpaint_request import InpaintRequest
    from maisi.pipelines.preview import preview
    from maisi.pipelines.refine import Refined, refine
    from maisi.pipelines.refine_request import RefineRequest
    from maisi.pipelines.requests import DecodeRequest, EncodeRequest, GenerateRequest
    from maisi.runs.carry_out import carry_out
    from maisi.space.files import read_volume, write_labels, write_volume
    from maisi.space.grid import Grid
    from maisi.space.label_files import read_labels
    from maisi.space.resample import crop, fit, pad, resample, with_spacing
    from maisi.space.volume import LabelMap, Volume
    from maisi.splitting.slabs import SlabTensor


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'maisi' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
