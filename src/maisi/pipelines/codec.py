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

from maisi.errors import InvalidRequestError
from maisi.networks.autoencoder import Autoencoder
from maisi.space.grid import Grid
from maisi.space.intensity import from_unit, to_unit
from maisi.space.resample import crop
from maisi.space.volume import Modality, Volume
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
    missing = [-n % autoencoder.factor for n in x.shape]
    padding = [m for n in reversed(missing) for m in (0, n)]
    x = torch.nn.functional.pad(x[None, None], padding, mode="replicate")
    with torch.inference_mode():
        mean, log_variance = autoencoder.encode(_as_weights(x, autoencoder))
    return Latent(mean.float().cpu(), log_variance.float().cpu(), volume.grid, volume.modality)


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
        unit = autoencoder.decode(_as_weights(latent, autoencoder))[0, 0].float().cpu().numpy()
    whole = Volume(
        from_unit(unit, modality), Grid((unit.shape[0], unit.shape[1], unit.shape[2]), grid.affine), modality
    )
    return crop(whole, (0, 0, 0), grid.shape) if whole.grid.shape != grid.shape else whole


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
