"""Label maps to latents and back, with a bundle's label autoencoder: 8 bits of an id in, a logit a structure out."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.anatomy.bits import NUM_BITS, label_bits
from maisi.anatomy.vocabulary import BACKGROUND, load_vocabulary
from maisi.bundle.bundle import Bundle
from maisi.data.latents import Latent
from maisi.errors import InvalidBundleError, InvalidLabelsError, InvalidRequestError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.pipelines.codec import as_weights, check_latent_size, encode_tensor
from maisi.space.volume import LabelMap

NAMES = ("label_autoencoder", "autoencoder")
"""Under which a bundle may hold an autoencoder of label maps."""

SLAB_PLANES = 8
"""Planes of a map whose logits are in memory together."""


@lru_cache(maxsize=1)
def label_channels() -> tuple[int, ...]:
    """The id in the vocabulary that each of the 125 channels of the released label autoencoder stands for.

    Background, then MAISI's structures by ascending id without the two kidney cysts, but with the kidney mass, then the
    body. Upstream's table says so of the last three channels, and of hepatic tumor (channel 21) and prostate (111);
    that the order between them ascends is what leaves 125 channels and meets those two.
    """
    vocabulary = load_vocabulary()
    cysts, last = vocabulary.group("cysts"), vocabulary.id("airway")
    shown = [
        structure.id
        for structure in vocabulary.structures
        if structure.id <= last
        and structure.id not in cysts
        and (not structure.is_dummy or structure.vista == "kidney mass")
    ]
    return BACKGROUND, *sorted(shown), vocabulary.id("body")


def channels_of(bundle: Bundle) -> tuple[int, ...]:
    """The id that each channel of a bundle's label autoencoder stands for; those of the released one unless it says."""
    told = bundle.info.label_generator
    return label_channels() if told is None or not told.channels else told.channels


def label_autoencoder(bundle: Bundle) -> Autoencoder:
    """The autoencoder of label maps in a bundle; raises `InvalidBundleError` saying what the bundle holds instead."""
    return cast(Autoencoder, bundle.network(label_autoencoder_name(bundle)))


def label_autoencoder_name(bundle: Bundle) -> str:
    """What a bundle calls its autoencoder of label maps; raises `InvalidBundleError` where it has none."""
    channels = channels_of(bundle)
    for name in NAMES:
        config = bundle.configs.get(name)
        if isinstance(config, AutoencoderConfig) and takes_labels(config, channels):
            return name
    raise InvalidBundleError(
        f"bundle {bundle.name!r} has no autoencoder of label maps; it holds {', '.join(bundle.names)}; accepted: one "
        f"named {' or '.join(NAMES)} that takes {NUM_BITS} channels and gives {len(channels)}, as `maisi "
        "convert` makes of upstream's mask autoencoder"
    )


def takes_labels(config: AutoencoderConfig, channels: Sequence[int] | None = None) -> bool:
    """True for an autoencoder that reads ids as bits and answers with a logit for each channel's structure."""
    return (config.in_channels, config.out_channels) == (NUM_BITS, len(channels or label_channels()))


def encode_labels(
    autoencoder: Autoencoder,
    labels: LabelMap,
    *,
    channels: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    made_from: str = "",
) -> Latent:
    """The latent of a label map of any size, stored as `dtype`, on the CPU; padded as `encode` pads.

    The network reads the bits of ids of the vocabulary; `channels` are those of `channels_of`. Raises
    `InvalidLabelsError` for an id that it has no channel for, since it could not give it back, and
    `InvalidRequestError` for an autoencoder of volumes.
    """
    channels = channels or label_channels()
    _check_takes_labels(autoencoder, channels)
    foreign = sorted({int(id) for id in np.unique(labels.array)} - set(channels))
    if foreign:
        vocabulary = load_vocabulary()
        told = [f"{id} ({vocabulary.name(id)})" if id in vocabulary.ids else str(id) for id in foreign]
        raise InvalidLabelsError(
            f"the label autoencoder has no channel for the ids {', '.join(told)}; accepted: the ids of MAISI without "
            "cysts and dummies, and 0"
        )
    mean, log_variance = encode_tensor(autoencoder, label_bits(labels.array)[None])
    return Latent(mean.to(dtype), log_variance.to(dtype), labels.grid, content="labels", made_from=made_from)


def decode_labels(autoencoder: Autoencoder, latent: Latent, channels: Sequence[int] | None = None) -> LabelMap:
    """The label map of a latent's mean on the latent's grid, uint8: in each voxel the structure of the largest logit.

    Raises `InvalidRequestError` for a latent of a volume and for an autoencoder of volumes.
    """
    if latent.content != "labels":
        raise InvalidRequestError("this latent is of a volume; accepted: a latent of a label map")
    channels = channels or label_channels()
    _check_takes_labels(autoencoder, channels)
    check_latent_size(autoencoder, latent.mean, latent.grid)
    ids = decode_ids(autoencoder, latent.mean, channels)
    return LabelMap(np.ascontiguousarray(ids[tuple(slice(n) for n in latent.grid.shape)]), latent.grid)


def decode_ids(autoencoder: Autoencoder, latent: Tensor, channels: Sequence[int]) -> np.ndarray:
    """The ids (x, y, z) of a latent (1, c, u, v, w), uint8; logits are there for `SLAB_PLANES` planes at a time."""
    with torch.inference_mode():
        features = autoencoder.decode_features(as_weights(latent, autoencoder))
        chosen = [logits.argmax(0).to(torch.uint8).cpu() for logits in logits_of(autoencoder, features)]
    return torch.tensor(channels, dtype=torch.uint8)[torch.cat(chosen).long()].numpy()


def logits_of(autoencoder: Autoencoder, features: Tensor) -> Iterator[Tensor]:
    """The logits (channels, planes, y, z) of slab after slab of features (1, c, x, y, z).

    The last convolution reads a plane beyond each end of a slab; at the border there is none but zeros.
    """
    convolution, planes = autoencoder.decoder.conv_out, features.shape[2]
    for start in range(0, planes, SLAB_PLANES):
        stop = min(planes, start + SLAB_PLANES)
        low, high = int(start == 0), int(stop == planes)
        slab = F.pad(features[:, :, start - 1 + low : stop + 1 - high], (0, 0, 0, 0, low, high))
        logits = convolution(slab.to(convolution.weight.dtype))
        yield logits[0, :, 1:-1]


def _check_takes_labels(autoencoder: Autoencoder, channels: Sequence[int]) -> None:
    config = autoencoder.config
    if not takes_labels(config, channels):
        raise InvalidRequestError(
            f"the autoencoder takes {config.in_channels} channels and gives {config.out_channels}; accepted for label "
            f"maps: {NUM_BITS} and {len(channels)}"
        )
