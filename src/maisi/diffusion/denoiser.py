"""What the sampling loop calls: a function of the noisy latent and the time, with every condition inside."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maisi.diffusion.sampler import Denoise
from maisi.errors import InvalidRequestError
from maisi.networks.controlnet import ControlNet
from maisi.networks.unet import DenoisingUNet
from maisi.shapes import BitsBatch, LatentBatch, Times


def predict(
    unet: DenoisingUNet,
    controlnet: ControlNet | None,
    x: LatentBatch,
    t: Times,
    *,
    conditions: Mapping[str, Tensor],
    embedding: Tensor | None = None,
    scale: float = 1.0,
) -> LatentBatch:
    """The prediction (b, c, u, v, w) of the U-Net for noisy latents `x` (b, c, u, v, w), steered by the ControlNet.

    `t` (b,) are times in training steps; `conditions` the keyword tensors of the U-Net, with b rows or 1 for the whole
    batch. `embedding` (b or 1, channels[0], u, v, w) is what `ControlNet.embed_condition` gives, and belongs to a
    ControlNet: one without the other raises `InvalidRequestError`. `scale` multiplies the residuals. The ControlNet is
    told of modality and context what its configuration takes. Gradients flow to both networks.
    """
    rows = _rows(conditions, x.shape[0])
    if controlnet is None:
        if embedding is not None:
            raise InvalidRequestError("an embedded label map was given, but no ControlNet to read it")
        return unet(x, t, **rows)
    if embedding is None:
        raise InvalidRequestError("a ControlNet needs its label map: give the result of its embed_condition")
    config = controlnet.config
    taken = {"modality": config.num_modalities is not None, "context": config.context_channels is not None}
    shared = {name: rows[name] for name, is_taken in taken.items() if is_taken and name in rows}
    residuals = controlnet(x, t, embedding, scale=scale, **shared)
    return unet(x, t, residuals=residuals, **rows)


def denoiser(
    unet: DenoisingUNet,
    controlnet: ControlNet | None = None,
    *,
    conditions: Mapping[str, Tensor],
    bits: BitsBatch | None = None,
    embedding: Tensor | None = None,
    controlnet_scale: float = 1.0,
) -> Denoise:
    """The prediction of the U-Net under `conditions`, steered by the ControlNet when there is one.

    `conditions` are the keyword tensors of the U-Net, encoded, one row a sample or one for the whole batch. The
    ControlNet takes its label map as `bits`, embedded here once and not at every step, or as that `embedding`, for a
    label map that several denoisers share or that was embedded slab by slab. For sampling, not for training: no
    gradient flows to the embedding. Raises `InvalidRequestError` for labels without a ControlNet, and the reverse.
    """
    if controlnet is None:
        if bits is not None or embedding is not None:
            raise InvalidRequestError("labels were given, but no ControlNet to read them")
    elif bits is not None and embedding is None:
        with torch.no_grad():
            embedding = controlnet.embed_condition(bits)
    elif bits is not None or embedding is None:
        raise InvalidRequestError("a ControlNet needs its labels once: either as bits or as their embedding")

    def denoise(x: LatentBatch, t: Times) -> LatentBatch:
        return predict(unet, controlnet, x, t, conditions=conditions, embedding=embedding, scale=controlnet_scale)

    return denoise


def guide(with_: Denoise, without: Denoise, scale: float, interval: tuple[float, float] | None = None) -> Denoise:
    """Classifier-free guidance (Ho and Salimans, 2022): without + scale (with - without); 1 means no guidance.

    Outside `interval`, times (low, high) in training steps, only `with_` is asked (Kynkäänniemi et al., 2024). Raises
    `InvalidRequestError` for an interval whose low is above its high.
    """
    if scale == 1:
        return with_
    if interval is not None and interval[0] > interval[1]:
        raise InvalidRequestError(f"a guidance interval is (low, high) in training steps, not {interval}")

    def denoise(x: LatentBatch, t: Times) -> LatentBatch:
        prediction = with_(x, t)
        # without an interval no time is read, for which a GPU would have to be waited for; a meta tensor has none
        if interval is not None and not t.is_meta and not interval[0] <= float(t[0]) <= interval[1]:
            return prediction
        unguided = without(x, t)
        return unguided + scale * (prediction - unguided)

    return denoise


def guide_apart(
    labelled: Denoise, plain: Denoise, unconditioned: Denoise, *, labels: float, conditions: float
) -> Denoise:
    """Guidance by labels and by the other conditions on scales of their own; 1 means none, and asks nothing more.

    unconditioned + conditions (plain - unconditioned) + labels (labelled - plain), where `plain` knows the conditions
    and `labelled` the labels too (Liu et al., 2022; the two scales as in Brooks et al., 2023).
    """
    if conditions == 1:
        return guide(labelled, plain, labels)

    def denoise(x: LatentBatch, t: Times) -> LatentBatch:
        with_labels, without = labelled(x, t), plain(x, t)
        unguided = unconditioned(x, t)
        return unguided + conditions * (without - unguided) + labels * (with_labels - without)

    return denoise


def _rows(conditions: Mapping[str, Tensor], batch: int) -> dict[str, Any]:
    """The conditions with one row a sample."""
    rows = {}
    for name, value in conditions.items():
        if value.shape[0] not in (1, batch):
            raise InvalidRequestError(f"condition {name!r} has {value.shape[0]} rows for a batch of {batch}")
        rows[name] = value.expand(batch, *value.shape[1:])
    return rows
