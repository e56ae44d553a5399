"""Volumes to latents and back, with a bundle's autoencoder."""

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maisi.bundle.bundle import Bundle
from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder
from maisi.shapes import Modality, Size3
from maisi.space.grid import Grid
from maisi.space.intensity import from_unit, to_unit
from maisi.space.resample import crop
from maisi.space.volume import Volume
from maisi.storage.atomic import write_atomically


@dataclass(frozen=True)
class Latent:
    """The posterior of an encoded volume, and the grid of the volume that it stands for."""

    mean: Tensor  # (1, c, u, v, w)
    log_variance: Tensor  # (1, c, u, v, w)
    grid: Grid
    modality: Modality = "ct"


def encode(autoencoder: Autoencoder, volume: Volume) -> Latent:
    """The latent of a volume of any size.

    A size that is not a multiple of the autoencoder's factor is continued at the high side of each axis by its last
    plane; `decode` cuts that off again.
    """
    x = torch.from_numpy(to_unit(volume.array, volume.modality))
    mean, log_variance = encode_unit(autoencoder, x)
    return Latent(mean.float().cpu(), log_variance.float().cpu(), volume.grid, volume.modality)


def encode_unit(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (1, c, u, v, w) of unit intensities (x, y, z), on the device of the autoencoder."""
    padding = [m for n in reversed(x.shape) for m in (0, -n % autoencoder.factor)]
    x = torch.nn.functional.pad(x[None, None], padding, mode="replicate")
    with torch.inference_mode():
        return autoencoder.encode(_as_weights(x, autoencoder))


def decode(autoencoder: Autoencoder, latent: Latent) -> Volume:
    """The volume of a latent's mean, HU, on the latent's grid."""
    return decode_tensor(autoencoder, latent.mean, latent.grid, latent.modality)


def decode_tensor(autoencoder: Autoencoder, latent: Tensor, grid: Grid, modality: Modality = "ct") -> Volume:
    """The volume of an unscaled latent (1, c, u, v, w), HU, cut to `grid`."""
    expected = tuple(-(-n // autoencoder.factor) for n in grid.shape)
    if tuple(latent.shape[2:]) != expected:
        raise InvalidRequestError(
            f"a latent of {tuple(latent.shape[2:])} is not of {grid.shape} voxels, which need {expected}"
        )
    with torch.inference_mode():
        unit = autoencoder.decode(_as_weights(latent, autoencoder))
    return volume_of_unit(unit, grid, modality)


def volume_of_unit(unit: Tensor, grid: Grid, modality: Modality = "ct") -> Volume:
    """The volume of unit intensities (1, 1, x, y, z), HU for CT, cut to `grid` at the high side of each axis."""
    array = unit[0, 0].float().cpu().numpy()
    shape = (array.shape[0], array.shape[1], array.shape[2])
    whole = Volume(from_unit(array, modality), Grid(shape, grid.affine), modality)
    return crop(whole, (0, 0, 0), grid.shape) if whole.grid.shape != grid.shape else whole


def rehearse_encode(size: Size3, bundle: Bundle) -> None:
    """Encoding a volume of `size` voxels on the meta device."""
    encode_unit(bundle.autoencoder, torch.empty(size, device="meta"))


def rehearse_decode(size: Size3, bundle: Bundle) -> None:
    """Decoding a latent of a volume of `size` voxels on the meta device."""
    autoencoder = bundle.autoencoder
    latent = (1, autoencoder.config.latent_channels, *(-(-n // autoencoder.factor) for n in size))
    with torch.inference_mode():
        autoencoder.decode(_as_weights(torch.empty(latent, device="meta"), autoencoder))


def rehearse_both(size: Size3, bundle: Bundle) -> None:
    """Encoding and decoding a volume of `size` voxels on the meta device."""
    rehearse_encode(size, bundle)
    rehearse_decode(size, bundle)


def write_latent(latent: Latent, path: Path) -> None:
    """Write mean, log-variance, affine, size and modality as safetensors, beside and renamed."""
    facts = {"shape": latent.grid.shape, "affine": latent.grid.affine.tolist(), "modality": latent.modality}
    tensors = {"mean": latent.mean.contiguous(), "log_variance": latent.log_variance.contiguous()}
    content = save(tensors, metadata={"maisi": json.dumps(facts)})
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def read_latent(path: Path) -> Latent:
    """Read what `write_latent` wrote; raises `InvalidRequestError` for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("maisi", "null"))
            if not isinstance(facts, dict):
                raise InvalidRequestError(f"{path} is not a latent that `maisi encode` wrote: it holds other tensors")
            mean, log_variance = file.get_tensor("mean"), file.get_tensor("log_variance")
        grid, modality = Grid(tuple(facts["shape"]), np.array(facts["affine"])), facts["modality"]
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no latent at {path}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InvalidRequestError(f"{path} is not a latent that `maisi encode` wrote: {error}") from error
    return Latent(mean, log_variance, grid, modality)


def _as_weights(x: Tensor, autoencoder: Autoencoder) -> Tensor:
    """The numbers on the device of the weights and in the widest of their formats."""
    formats = {weights.dtype for weights in autoencoder.parameters()}
    device = next(autoencoder.parameters()).device
    return x.to(device, reduce(torch.promote_types, formats))
