"""Volumes to latents and back, with a bundle's autoencoder."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from maisi.bundle.bundle import Bundle
from maisi.data.latents import Latent
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder
from maisi.shapes import ImageBatch, LatentBatch, Modality, Size3, VoxelBatch
from maisi.space.grid import Grid
from maisi.space.intensity import from_unit, to_unit
from maisi.space.resample import crop
from maisi.space.volume import Volume


def encode(
    autoencoder: Autoencoder, volume: Volume, *, dtype: torch.dtype = torch.float32, made_from: str = ""
) -> Latent:
    """The latent of a volume of any size, stored as `dtype`, on the CPU.

    A size that is not a multiple of the autoencoder's factor is continued at the high side of each axis by its last
    plane; `decode` cuts that off again. Raises `InvalidRequestError` for an autoencoder of label maps.
    """
    check_takes_volumes(autoencoder)
    x = torch.from_numpy(to_unit(volume.array, volume.modality))[None, None]
    mean, log_variance = encode_tensor(autoencoder, x)
    return Latent(mean.to(dtype), log_variance.to(dtype), volume.grid, volume.modality, made_from=made_from)


def encode_tensor(autoencoder: Autoencoder, x: VoxelBatch) -> tuple[LatentBatch, LatentBatch]:
    """Mean and log-variance (1, c, u, v, w) of a batch of one (1, channels, x, y, z), float32 on the CPU.

    Any size: the last plane of each axis is repeated up to the next multiple of the autoencoder's factor.
    """
    missing = [-n % autoencoder.factor for n in x.shape[2:]]
    padding = [m for n in reversed(missing) for m in (0, n)]
    x = torch.nn.functional.pad(x, padding, mode="replicate")
    with torch.inference_mode():
        mean, log_variance = autoencoder.encode(as_weights(x, autoencoder))
    return (mean, log_variance) if mean.is_meta else (mean.float().cpu(), log_variance.float().cpu())


def decode(autoencoder: Autoencoder, latent: Latent) -> Volume:
    """The volume of a latent's mean, HU, on the latent's grid; raises `InvalidRequestError` for a label map's."""
    if latent.content != "volume":
        raise InvalidRequestError("this latent is of a label map; accepted: a latent of a volume, or decode_labels")
    check_takes_volumes(autoencoder)
    return decode_tensor(autoencoder, latent.mean, latent.grid, latent.modality)


def decode_tensor(autoencoder: Autoencoder, latent: LatentBatch, grid: Grid, modality: Modality = "ct") -> Volume:
    """The volume of an unscaled latent (1, c, u, v, w), HU, cut to `grid`; `InvalidRequestError` for another size."""
    check_latent_size(autoencoder, latent, grid)
    with torch.inference_mode():
        unit = autoencoder.decode(as_weights(latent, autoencoder))
    return volume_of_unit(unit, grid, modality)


def volume_of_unit(unit: ImageBatch, grid: Grid, modality: Modality = "ct") -> Volume:
    """The volume of unit intensities (1, 1, x, y, z), HU for CT, cut to `grid` at the high side of each axis."""
    array = unit[0, 0].float().cpu().numpy()
    shape = (array.shape[0], array.shape[1], array.shape[2])
    whole = Volume(from_unit(array, modality), Grid(shape, grid.affine), modality)
    return crop(whole, (0, 0, 0), grid.shape) if whole.grid.shape != grid.shape else whole


def rehearse_encode(size: Size3, bundle: Bundle, name: str = "autoencoder") -> None:
    """Encoding a volume (or label map, by the network of that name) of `size` voxels on the meta device."""
    autoencoder: Any = bundle.network(name)
    encode_tensor(autoencoder, torch.empty((1, autoencoder.config.in_channels, *size), device="meta"))


def rehearse_decode(size: Size3, bundle: Bundle, name: str = "autoencoder") -> None:
    """Decoding a latent of a volume of `size` voxels on the meta device."""
    autoencoder: Any = bundle.network(name)
    latent = (1, autoencoder.config.latent_channels, *(-(-n // autoencoder.factor) for n in size))
    with torch.inference_mode():
        autoencoder.decode(as_weights(torch.empty(latent, device="meta"), autoencoder))


def rehearse_decode_labels(size: Size3, bundle: Bundle, name: str) -> None:
    """Decoding a latent of a label map of `size` voxels on the meta device, but for the logits."""
    autoencoder: Any = bundle.network(name)
    latent = (1, autoencoder.config.latent_channels, *(-(-n // autoencoder.factor) for n in size))
    with torch.inference_mode():
        autoencoder.decode_features(as_weights(torch.empty(latent, device="meta"), autoencoder))


def rehearse_both(size: Size3, bundle: Bundle) -> None:
    """Encoding and decoding a volume of `size` voxels on the meta device."""
    rehearse_encode(size, bundle)
    rehearse_decode(size, bundle)


def check_latent_size(autoencoder: Autoencoder, latent: LatentBatch, grid: Grid) -> None:
    """Raise `InvalidRequestError` where a latent has not the channels and the size of a grid for this autoencoder."""
    if latent.shape[1] != autoencoder.config.latent_channels:
        raise InvalidRequestError(
            f"the latent has {latent.shape[1]} channels, the autoencoder's have {autoencoder.config.latent_channels}: "
            "another bundle encoded it"
        )
    expected = tuple(-(-n // autoencoder.factor) for n in grid.shape)
    if tuple(latent.shape[2:]) != expected:
        raise InvalidRequestError(
            f"a latent of {tuple(latent.shape[2:])} is not of {grid.shape} voxels, which need {expected}"
        )


def check_takes_volumes(autoencoder: Autoencoder) -> None:
    """Raise `InvalidRequestError` for an autoencoder of label maps."""
    channels = autoencoder.config.in_channels, autoencoder.config.out_channels
    if channels != (1, 1):
        raise InvalidRequestError(
            f"the autoencoder takes {channels[0]} channels and gives {channels[1]} (label maps); accepted: one that "
            "takes and gives a volume, 1 channel"
        )


def as_weights(x: Tensor, autoencoder: Autoencoder) -> Tensor:
    """The numbers on the device of the weights and in the widest of their formats."""
    formats = {weights.dtype for weights in autoencoder.parameters()}
    device = next(autoencoder.parameters()).device
    return x.to(device, reduce(torch.promote_types, formats))
